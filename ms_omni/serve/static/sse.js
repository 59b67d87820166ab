// Server-sent events, as the WHATWG's specification has them, as far as chat completions use them.

/** Text in any pieces -> the data of each whole event. */
export class EventParser {
  constructor() {
    this.rest = "";
    this.data = [];
  }

  /** Returns the events that are complete with this piece. */
  push(text) {
    const events = [];
    this.rest += text;
    // A carriage return at the end may be the first half of a line's end.
    const lines = this.rest.split(/\r\n|\n|\r(?!$)/);
    this.rest = lines.pop();
    for (const line of lines) {
      if (line === "") {
        if (this.data.length) events.push(this.data.join("\n"));
        this.data = [];
      } else if (line.startsWith("data:")) {
        this.data.push(line.slice(line[5] === " " ? 6 : 5));
      } // comments and other fields carry nothing for us
    }
    return events;
  }
}

/** The JSON of each event of a response's body until [DONE]; throws if it ends before. */
export async function* eventsOf(body) {
  const parser = new EventParser();
  const decoder = new TextDecoder();
  const reader = body.getReader();
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) throw new Error("the connection ended in the middle of the answer");
      for (const data of parser.push(decoder.decode(value, { stream: true }))) {
        if (data === "[DONE]") return;
        yield JSON.parse(data);
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
