// English and Chinese.

const WORDS = {
  en: {
    skip: "Skip to the message", clear: "Delete conversation", language: "中文", languageShort: "中", theme: "Light or dark",
    settings: "Settings", welcome: "Talk, show, ask.", conversation: "Conversation", attached: "Attached",
    hint: "Type, drop a picture, a sound or a video, record your voice, or call.",
    hintMiniature: "The miniature hears spoken digits, sees coloured shapes and adds small numbers. Ask it about those.",
    message: "Message", discard: "Discard the recording", attach: "Attach pictures, sounds, videos", record: "Record your voice",
    recordEnd: "End the recording", call: "Call", stop: "Stop", send: "Send", level: "Level", transcript: "Transcript",
    camera: "Camera", mute: "Mute", muted: "Muted", push: "Push to talk", hold: "Hold to talk", hangUp: "End",
    again: "Call again", close: "Close", answer: "Answer", modelName: "Model", voice: "Voice", modalities: "Answers as",
    textAndSound: "Text and sound", textOnly: "Text", system: "System prompt", systemHint: "None",
    videoSound: "Listen to the sound of videos", sampling: "Sampling", samplingHelp: "What is left empty is the server's default.",
    temperature: "Temperature", maxTokens: "Most tokens", seed: "Seed", threshold: "Speech threshold, 0 to 1",
    silence: "Silence that ends a turn, ms", pushLong: "Push to talk: hold the space bar or the button", tools: "Tools",
    toolsHelp: "Functions that the model may call, as JSON", connection: "Connection", key: "API key",
    keepKey: "Keep the key in this browser", reset: "Reset", done: "Done", drop: "Drop pictures, sounds or videos",
    you: "You", model: "Model", thinking: "Thinking", thoughts: "Reasoning", play: "Play", save: "Save as WAV", copy: "Copy",
    copied: "Copied", retry: "Ask again", remove: "Remove {name}", deleted: "Conversation deleted.", undo: "Undo",
    called: "calls", toolAnswer: "Result of {name}", giveAnswer: "Send results", sound: "Sound", stopped: "Stopped.",
    firstToken: "first token", firstSound: "first sound", rtf: "real-time factor", tokens: "tokens", answered: "answered after",
    rtfHelp: "Seconds from the question to the last sound for each second of sound; below 1 it never runs dry",
    answeredHelp: "From the end of your speech to the first sound",
    lengthReached: "Cut at the most tokens.", noAnswer: "No answer came.", connecting: "Connecting", listening: "Listening",
    hearing: "Listening", hearingNote: "I hear you", speaking: "Speaking", ended: "Call ended",
    talkNote: "Hold the space bar or the button, and speak", interruptNote: "Speak to interrupt",
    listeningNote: "Say something", digitsNote: "Say two to four digits", mutedNote: "Your microphone is muted", lost: "The connection was lost.",
    wrongKey: "The server wants a key. Put it into the settings.", noServer: "The server does not answer.", loading: "The model is being loaded …",
    httpError: "The server answered {status}.", retryAfter: "Try again in {seconds} s.",
    insecure: "Browsers give microphone and camera only to pages from https or localhost. Start the server with --ssl-certfile and --ssl-keyfile.",
    denied: "The browser did not give the microphone or camera: {reason}", badTools: "The tools are not a JSON list: {reason}",
    badFile: "{name} is neither a picture nor a sound nor a video.", socketFailed: "The server did not take the call. It may have as many as it can hold.",
    spoken: "spoken", interrupted: "interrupted", askDigits: "Say a yellow square and 806.", askSum: "What is 4 + 5?",
    askRecord: "Record a question", askPicture: "Show a picture", askCall: "Start a call",
  },
  zh: {
    skip: "跳到输入框", clear: "删除对话", language: "English", languageShort: "EN", theme: "浅色或深色",
    settings: "设置", welcome: "说给它听，给它看，问它。", conversation: "对话", attached: "附件",
    hint: "输入文字，拖入图片、声音或视频，录一段语音，或者直接通话。",
    hintMiniature: "这个微型模型能听懂数字（英语）、认识彩色图形、会做小加法。请用英语问它这些。",
    message: "消息", discard: "放弃录音", attach: "添加图片、声音、视频", record: "录音",
    recordEnd: "结束录音", call: "通话", stop: "停止", send: "发送", level: "音量", transcript: "通话文字",
    camera: "摄像头", mute: "静音", muted: "已静音", push: "按住说话", hold: "按住说话", hangUp: "挂断",
    again: "重新通话", close: "关闭", answer: "回答", modelName: "模型", voice: "音色", modalities: "回答形式",
    textAndSound: "文字和语音", textOnly: "文字", system: "系统提示词", systemHint: "无",
    videoSound: "同时听视频里的声音", sampling: "采样", samplingHelp: "留空则使用服务器的默认值。",
    temperature: "温度", maxTokens: "最多 token 数", seed: "随机种子", threshold: "语音检测阈值（0 到 1）",
    silence: "静音多久算说完（毫秒）", pushLong: "按住说话：按住空格键或按钮", tools: "工具",
    toolsHelp: "模型可以调用的函数（JSON）", connection: "连接", key: "API 密钥",
    keepKey: "在此浏览器中保存密钥", reset: "恢复默认", done: "完成", drop: "松开以添加图片、声音或视频",
    you: "你", model: "模型", thinking: "思考中", thoughts: "思考过程", play: "播放", save: "保存为 WAV", copy: "复制",
    copied: "已复制", retry: "重新回答", remove: "移除 {name}", deleted: "对话已删除。", undo: "撤销",
    called: "调用", toolAnswer: "{name} 的结果", giveAnswer: "发送结果", sound: "语音", stopped: "已停止。",
    firstToken: "首个 token", firstSound: "首个声音", rtf: "实时率", tokens: "token", answered: "应答用时",
    rtfHelp: "从提问到最后一段声音的秒数除以声音的秒数；小于 1 时播放不会中断",
    answeredHelp: "从你说完到听见第一个声音",
    lengthReached: "已达到 token 上限。", noAnswer: "没有收到回答。", connecting: "正在连接", listening: "正在听",
    hearing: "正在听", hearingNote: "听到你在说话", speaking: "正在说", ended: "通话已结束",
    talkNote: "按住空格键或按钮说话", interruptNote: "开口即可打断",
    listeningNote: "请说话", digitsNote: "请用英语说两到四个数字", mutedNote: "麦克风已静音", lost: "连接已断开。",
    wrongKey: "服务器需要密钥，请在设置中填写。", noServer: "服务器没有响应。", loading: "正在加载模型……",
    httpError: "服务器返回 {status}。", retryAfter: "请在 {seconds} 秒后重试。",
    insecure: "浏览器只允许 https 或 localhost 的页面使用麦克风和摄像头。请用 --ssl-certfile 和 --ssl-keyfile 启动服务器。",
    denied: "浏览器未允许使用麦克风或摄像头：{reason}", badTools: "工具不是 JSON 列表：{reason}",
    badFile: "{name} 不是图片、声音或视频。", socketFailed: "服务器没有接受通话，可能通话数已满。",
    spoken: "语音", interrupted: "被打断", askDigits: "Say a yellow square and 806.", askSum: "What is 4 + 5?",
    askRecord: "录一个问题", askPicture: "给它看图片", askCall: "开始通话",
  },
};

let language = "en";

/** The words of a key, its {names} filled in. */
export function t(key, values = {}) {
  return WORDS[language][key].replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

export const languageOf = (tag) => (tag.toLowerCase().startsWith("zh") ? "zh" : "en");

/** Sets the language and writes it into everything marked with data-t, data-t-label and data-t-placeholder. */
export function speak(name) {
  language = name;
  document.documentElement.lang = name === "zh" ? "zh-CN" : "en";
  translate(document);
}

export function translate(root) {
  for (const element of root.querySelectorAll("[data-t]")) element.textContent = t(element.dataset.t);
  for (const element of root.querySelectorAll("[data-t-placeholder]")) element.placeholder = t(element.dataset.tPlaceholder);
  for (const element of root.querySelectorAll("[data-t-label]")) {
    element.setAttribute("aria-label", t(element.dataset.tLabel));
    element.title = t(element.dataset.tLabel);
  }
}

export const words = WORDS; // the test compares their keys
