/** What stays in the browser between two visits: the conversation, the settings, the theme. */

const CHAT = "lightllm.chat";
const SETTINGS = "lightllm.settings";

export function loadSettings() {
  return read(SETTINGS) ?? {};
}

export function saveSettings(settings) {
  write(SETTINGS, settings);
}

/** The messages of the conversation. One that was being written when the page was left counts as stopped. */
export function loadMessages() {
  const messages = read(CHAT);
  if (!Array.isArray(messages)) return [];
  for (const message of messages) {
    if (message.writing) Object.assign(message, { writing: false, finish: "stopped" });
  }
  return messages;
}

/**
 * Storage is small (5 MB in most browsers): what is too much loses its probabilities first, then its images.
 */
export function saveMessages(messages) {
  const lighter = [
    (message) => message,
    ({ tokens, ...message }) => message,
    ({ tokens, images, ...message }) =>
      images?.length ? { ...message, imagesLost: images.length } : message,
  ];
  return lighter.some((lighten) => write(CHAT, messages.map(lighten)));
}

function read(name) {
  try {
    return JSON.parse(localStorage.getItem(name));
  } catch {
    return null;
  }
}

function write(name, value) {
  try {
    localStorage.setItem(name, JSON.stringify(value));
    return true;
  } catch {
    return false; // full, or blocked
  }
}
