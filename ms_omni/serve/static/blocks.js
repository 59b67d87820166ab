// The little of Markdown that the page shows: fenced blocks and `code`. Everything becomes text nodes.

/** Text -> [{kind: "text" | "code", text, language}]; a fence that is not closed yet is code to the end. */
export function blocksOf(text) {
  const blocks = [];
  let block = { kind: "text", lines: [] };
  const close = () => {
    if (block.kind === "code" || block.lines.join("").trim()) {
      blocks.push({ kind: block.kind, language: block.language, text: block.lines.join("\n").replace(/^\n+|\n+$/g, "") });
    }
  };
  for (const line of text.split("\n")) {
    const fence = line.match(/^\s*```(.*)$/);
    if (!fence) {
      block.lines.push(line);
      continue;
    }
    close();
    block = block.kind === "code" ? { kind: "text", lines: [] } : { kind: "code", language: fence[1].trim(), lines: [] };
  }
  close();
  return blocks;
}

/** `code` within a line: [[text, isCode], ...]. */
export function spansOf(text) {
  return text.split(/(`[^`\n]+`)/).filter(Boolean).map((part) => {
    const code = part.length > 2 && part.startsWith("`") && part.endsWith("`");
    return [code ? part.slice(1, -1) : part, code];
  });
}

/** Replaces what `element` shows. */
export function show(element, text) {
  const nodes = blocksOf(text).map(({ kind, text: body }) => {
    const node = document.createElement(kind === "code" ? "pre" : "p");
    const spans = kind === "code" ? [[body, true]] : spansOf(body);
    node.append(
      ...spans.map(([part, code]) => {
        if (!code) return part;
        const span = document.createElement("code");
        span.textContent = part;
        return span;
      }),
    );
    return node;
  });
  element.replaceChildren(...nodes);
}
