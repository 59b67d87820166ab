// What was waited for and is no longer wanted: a call that ended, a start that failed, a second click. No browser: `node --test`.
import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";

const later = () => {
  const one = {};
  one.promise = new Promise((resolve, reject) => Object.assign(one, { resolve, reject }));
  return one;
};
const settled = () => new Promise(setImmediate);

let elements, contexts, nodes, fails, asked, ticks;

class Element extends EventTarget {
  hidden = true;
  dataset = {};
  srcObject = null;
  style = { setProperty() {} };
  classList = { toggle() {} };
  lastChild = {};
  children = [];
  value = "";
  play = async () => {};
  showModal() {
    this.open = true;
  }
  setAttribute(name, value) {
    this[name] = value;
  }
  querySelector() {
    return new Element();
  }
  focus() {}
  append() {}
  remove() {}
  replaceChildren() {}
}

class Stream {
  constructor() {
    this.live = true;
  }
  getTracks() {
    return [{ stop: () => (this.live = false) }];
  }
}

class Context {
  constructor() {
    contexts.push(this);
    this.state = "running";
    this.audioWorklet = { addModule: async () => this.fail("addModule") };
  }
  fail(what) {
    if (fails === what) throw new Error(what);
  }
  async resume() {
    this.fail("resume");
  }
  async close() {
    this.state = "closed";
  }
  createMediaStreamSource() {
    return { connect() {} };
  }
}

class Node {
  constructor(context) {
    context.fail("node");
    nodes.push(this);
    this.sent = [];
    this.port = { postMessage: (message) => this.sent.push(message) };
  }
  connect() {}
}

/** What the page asks of the user's devices waits in `asked`, each with its stream. */
function getUserMedia() {
  const one = { ...later(), stream: new Stream() };
  one.give = () => one.resolve(one.stream);
  asked.push(one);
  return one.promise;
}

globalThis.document = {
  baseURI: "http://localhost/",
  body: new Element(),
  createElement: () => new Element(),
  querySelector: () => null,
  getElementById: (id) => (elements[id] ??= new Element()),
};
globalThis.addEventListener = () => {};
globalThis.setInterval = (run) => (ticks.set(run, run), run);
globalThis.clearInterval = (id) => ticks.delete(id);
globalThis.setTimeout = () => {}; // messages that go by themselves
Object.defineProperty(globalThis, "navigator", { value: { mediaDevices: { getUserMedia } } });
globalThis.AudioContext = Context;
globalThis.AudioWorkletNode = Node;
globalThis.WebSocket = class {
  close() {}
};

const { Call } = await import("./call.js");
const { Chat } = await import("./chat.js");
const { Microphone, Player } = await import("./sound.js");

beforeEach(() => {
  [elements, contexts, nodes, fails, asked, ticks] = [{}, [], [], null, [], new Map()];
});

for (const what of ["addModule", "node", "resume"]) {
  test(`a microphone that fails at ${what} is let go`, async () => {
    fails = what;
    const opened = Microphone.open({ rate: 24000, chunk_s: 0.04, clean: true, take() {} });
    asked[0].give();
    await assert.rejects(opened, { message: what });
    assert.deepEqual([asked[0].stream.live, contexts[0].state], [false, "closed"]);
  });
}

test("a player that fails is closed", async () => {
  for (fails of ["addModule", "node"]) await assert.rejects(Player.open(), { message: fails });
  assert.deepEqual(contexts.map(({ state }) => state), ["closed", "closed"]);
});

test("a stop ends what plays, and not what begins meanwhile", async () => {
  const player = await Player.open();
  const [{ sent, port }] = nodes;
  const told = [];
  player.on("old", ({ type }) => told.push(["old", type]));
  const stopped = player.stop();
  player.on("new", ({ type }) => told.push(["new", type]));
  player.push("old", new Int16Array(1)); // was on its way
  player.push("new", new Int16Array(1));
  assert.deepEqual(sent.map(({ type, id }) => [type, id]), [["stop", undefined], ["push", "new"]]);
  port.onmessage({ data: { type: "stopped", call: sent[0].call, heard: null } });
  await stopped;
  port.onmessage({ data: { type: "started", id: "new" } });
  assert.deepEqual(told, [["old", "stopped"], ["new", "started"]]);
});

/** A call as it is once the microphone is given. */
async function connected(call) {
  const start = call.start();
  await settled();
  asked.at(-1).give();
  await start;
  assert.ok(call.session);
}

const over = () => contexts.every(({ state }) => state === "closed") && asked.every(({ stream }) => !stream.live);

test("a call that is over before the microphone is given lets it go", async () => {
  const call = new Call();
  const start = call.start();
  await settled();
  await call.end();
  asked[0].give();
  await start;
  assert.ok(over() && !call.session);
});

test("two starts at once are one call, and one that is over at once asks for nothing", async () => {
  const call = new Call();
  const first = call.start();
  await connected(call);
  await first;
  assert.equal(asked.length, 1);
  const third = call.start();
  await call.end();
  await third;
  assert.equal(asked.length, 1);
  assert.ok(over());
});

test("what a player tells after its call is passed over", async () => {
  const call = new Call();
  await connected(call);
  const { session } = call;
  await call.end();
  session.to("speaking");
  assert.notEqual(elements.call.dataset.state, "speaking");
});

test("a call that failed leaves the next one alone", async () => {
  const call = new Call();
  await connected(call);
  const failed = call.fail("lost");
  assert.deepEqual([elements.call.dataset.state, elements.again.hidden], ["ended", false]);
  const start = call.start();
  await failed;
  assert.deepEqual([elements.call.dataset.state, elements.again.hidden, call.note], ["connecting", true, null]);
  await settled();
  asked[1].give();
  await start;
  await call.end();
});

test("a camera: one for two clicks, none for a call that is over", async (context) => {
  const looks = context.mock.method(Call.prototype, "look", () => {});
  const call = new Call();
  await connected(call);
  const clicks = [call.toggleCamera(), call.toggleCamera()];
  assert.equal(asked.length, 2); // a microphone and a camera
  asked[1].give();
  await Promise.all(clicks);
  assert.equal(elements.view.srcObject, asked[1].stream);
  assert.deepEqual([ticks.size, looks.mock.callCount()], [1, 1]);

  await call.toggleCamera();
  assert.deepEqual([asked[1].stream.live, elements.view.hidden], [false, true]);
  const play = later();
  elements.view.play = () => play.promise;
  const click = call.toggleCamera();
  asked[2].give();
  await settled();
  await call.end();
  play.resolve();
  await click;
  assert.equal(ticks.size, 0);
  assert.ok(over());
});

test("a camera that is given too late leaves that of the next call alone", async () => {
  const call = new Call();
  await connected(call);
  const late = call.toggleCamera();
  await call.end();
  await connected(call);
  const click = call.toggleCamera();
  asked.at(-1).give();
  await click;
  asked[1].give();
  await late;
  assert.deepEqual([asked[1].stream.live, elements.view.srcObject, elements.view.hidden], [false, asked.at(-1).stream, false]);
  await call.end();
  assert.ok(over());
});

test("a camera whose picture does not play is let go", async () => {
  const call = new Call();
  await connected(call);
  document.getElementById("view").play = () => Promise.reject(new Error("no picture"));
  const click = call.toggleCamera();
  asked[1].give();
  await click;
  assert.deepEqual([asked[1].stream.live, elements.view.srcObject, elements.camera["aria-pressed"]], [false, null, false]);
  await call.end();
});

/** A chat with a file that is still being read; its answers are noted. */
function chatReading() {
  const file = later();
  const answers = [];
  const chat = Object.assign(Object.create(Chat.prototype), {
    history: [], request: null, opening: null, recorder: {}, refresh() {}, hush() {},
    attachments: { list: [], take: () => [{ kind: "image", part: file.promise }] },
    answer: async () => answers.push(chat.messages()),
  });
  document.getElementById("prompt").value = "look";
  return { chat, file, answers };
}

test("a second message waits for the first, whose file is still being read", async () => {
  const { chat, file, answers } = chatReading();
  const sent = chat.send();
  elements.prompt.value = "and?";
  await chat.send();
  assert.deepEqual([elements.prompt.value, chat.history.length, answers], ["and?", 1, []]);
  file.resolve("picture");
  await sent;
  assert.deepEqual(answers, [[{ role: "user", content: ["picture", { type: "text", text: "look" }] }]]);
});

test("a conversation that is deleted while a file is read is not asked about", async () => {
  const { chat, file, answers } = chatReading();
  const sent = chat.send();
  chat.clear();
  file.resolve("picture");
  await sent;
  assert.deepEqual([chat.history, chat.busy, answers], [[], false, []]);
});

test("a file that cannot be read is told, and nothing is sent without it", async () => {
  const { chat, file, answers } = chatReading();
  const sent = chat.send();
  file.reject(new Error("gone"));
  await sent;
  assert.deepEqual([elements.prompt.value, chat.history, chat.busy, answers], ["look", [], false, []]);
});

test("one player, and another try if it did not open", async () => {
  const { chat } = chatReading();
  fails = "node";
  await assert.rejects(chat.open(), { message: "node" });
  fails = null;
  await Promise.all([chat.open(), chat.open()]);
  assert.equal(contexts.length, 2);
});
