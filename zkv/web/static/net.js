// Requests to the console. Paths are relative, so that it also works below a path of a proxy.

/** A request that failed, with the fields of the answer: code, message, rev and so on. */
export class Refused extends Error {
  constructor(fields) {
    super(fields.message);
    Object.assign(this, fields);
  }
}

export const MSGPACK = "application/msgpack";
const session = { loggedOut: () => {} };

/** Say what to do when a login is needed. */
export function onLoggedOut(todo) {
  session.loggedOut = todo;
}

/** Build a path with a query; fields that are undefined or null are left out. */
export function path(name, query = {}) {
  const given = Object.entries(query).filter(([, value]) => value !== undefined && value !== null);
  return given.length ? `${name}?${new URLSearchParams(given)}` : name;
}

/** Send a request; the answer is a Response. Throws Refused. */
export async function send(name, query, options = {}) {
  let answer;
  try {
    answer = await fetch(path(name, query), { credentials: "same-origin", cache: "no-store", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused({ code: "UNREACHABLE", message: "the console does not answer" });
  }
  if (answer.ok) return answer;
  const fields = await answer.json().catch(() => ({ code: "INTERNAL", message: `status ${answer.status}` }));
  if (answer.status === 401 && name !== "login") session.loggedOut();
  throw new Refused(fields);
}

/** Send a request; the answer is what its JSON holds. For values use `send`: numbers would suffer. */
export async function ask(name, query, options) {
  return (await send(name, query, options)).json();
}

/** Send a request that tells its progress in lines of JSON; calls `told` with each. */
export async function follow(name, query, options, told) {
  const answer = await send(name, query, { method: "POST", ...options });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let kept = "";
  let last = {};
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    const lines = (kept + value).split("\n");
    kept = lines.pop();
    for (const line of lines) told((last = JSON.parse(line)));
  }
  if (!last.done) throw new Refused(last.code ? last : { ...last, code: "UNREACHABLE", message: "the connection was lost before the end" });
  return last;
}
