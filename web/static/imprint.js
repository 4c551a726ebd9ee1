// Progressive enhancement: every form works without this script, and no decision is made here.
//
// The server renders the page. An element with `data-live` and an id is replaced by its counterpart in a newly loaded
// page when it has changed. Forms, uploads and events all end in such a replacement.

const byId = (id) => document.getElementById(id);

// Texts in the language of the page. In English there are none: the text itself is shown.
const texts = JSON.parse(document.querySelector("meta[name=texts]")?.content ?? "{}");
const t = (text, values = {}) => (texts[text] || text).replace(/\{(\w+)\}/g, (_, name) => values[name]);
globalThis.imprintText = t; // for the other scripts, which are loaded after this one

// ---- replacing ----------------------------------------------------------------------------------------------------

const isTyping = (region) => {
  const at = document.activeElement;
  return region.contains(at) && at.matches("input:not([type=radio]), textarea") && at.value !== at.defaultValue;
};

// What the server has sent for a region or an item, without the key of a form, which is another one in each page. What a
// visitor opens or types, and what this script changes, is not in it.
const served = new WeakMap();
const shape = (one) => one.outerHTML.replace(/(name="key" value=")[^"]*/g, "$1");
const REGIONS = "[data-live], [data-keyed] > *";
const remember = (root) => root.querySelectorAll(REGIONS).forEach((one) => served.set(one, shape(one)));

// Of a list with hundreds of pictures, only the items that have changed are made again.
function keepItems(region, next) {
  const list = region.querySelector("[data-keyed]"), coming = next.querySelector("[data-keyed]");
  if (!list || !coming) return;
  const before = new Map([...list.children].map((item) => [item.id, item]));
  for (const item of [...coming.children]) {
    const old = before.get(item.id);
    if (old && served.get(old) === served.get(item)) item.replaceWith(old);
  }
}

function replace(fresh) {
  remember(fresh);
  for (const region of document.querySelectorAll("[data-live]")) {
    const next = fresh.getElementById(region.id);
    // A form for one more of the same keeps what was typed, which the server does not know.
    if (next?.querySelector("[data-keeps]") && region.querySelector("[data-keeps]")) continue;
    if (!next || isTyping(region) || served.get(region) === served.get(next)) continue;
    const focused = region.contains(document.activeElement) ? document.activeElement.id : "";
    const open = [...region.querySelectorAll("details[open] > summary[id]")].map((summary) => summary.id);
    const wasOpen = [...region.querySelectorAll("details")].some((one) => one.open);
    document.adoptNode(next);
    keepItems(region, next);
    region.replaceWith(next);
    for (const id of open) byId(id)?.parentElement.setAttribute("open", "");
    prepare(next);
    if (focused) (byId(focused) ?? byId("main")).focus({ preventScroll: wasOpen });
  }
  const next = fresh.getElementById("announce"), announce = byId("announce");
  if (next && announce && next.textContent !== announce.textContent) {
    announce.textContent = next.textContent;
    byId("notice").replaceChildren(); // the notice before is out of date
  }
  follow();
}

function notice(kind, ...content) {
  const box = document.createElement("div");
  box.className = `note ${kind}`;
  if (kind === "bad") box.setAttribute("role", "alert");
  box.append(...content);
  byId("notice").replaceChildren(box);
  if (kind === "") return;
  box.scrollIntoView({ block: "nearest" });
  box.querySelector("button")?.focus(); // a question
}

const trouble = () => notice("bad", t("The service does not answer. Try again in a moment."));

// ---- the connection -----------------------------------------------------------------------------------------------

// What is shown may be old while the service does not answer, or the session has ended: a banner says so, until a
// request succeeds. Nothing that was typed is thrown away meanwhile.
const LOOK_AGAIN_MS = [2000, 4000, 8000, 15000, 30000];
const banner = byId("connection");
let looks = 0, looking;

class SessionEnded extends Error {}

function tell(kind, ...content) {
  if (banner.dataset.kind === kind) return;
  banner.dataset.kind = kind;
  banner.replaceChildren(...content);
  banner.hidden = !kind;
}

function lost() {
  const at = new Date().toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
  tell("lost", t("The connection was lost at {at}. What you see may be old. Reconnecting …", { at }));
  clearTimeout(looking);
  looking = setTimeout(() => refresh().catch(() => {}), LOOK_AGAIN_MS[Math.min(looks++, LOOK_AGAIN_MS.length - 1)]);
}

function ended() {
  const link = document.createElement("a");
  link.href = "/sign-in?next=/signed-in";
  link.target = "_blank";
  link.textContent = t("Sign in again");
  tell("ended", `${t("Your session has ended.")} `, link, ` ${t("in another tab, then go on here: what you typed is kept.")}`);
}

function found() {
  looks = 0;
  clearTimeout(looking);
  tell("");
}

addEventListener("online", () => { if (banner.dataset.kind) refresh().catch(() => {}); });
document.addEventListener("visibilitychange", () => {
  if (!document.hidden && banner.dataset.kind) refresh().catch(() => {});
});

const isSignIn = (address) => {
  const at = new URL(address);
  return at.pathname === "/sign-in" && at.searchParams.has("next");
};

async function load(address, options = {}) {
  let answer, text;
  try {
    answer = await fetch(address, { credentials: "same-origin", ...options });
    text = await answer.text();
  } catch (error) {
    if (error.name !== "AbortError") lost();
    throw error;
  }
  if (isSignIn(answer.url)) { ended(); throw new SessionEnded(); }
  found();
  return { answer, fresh: new DOMParser().parseFromString(text, "text/html") };
}

// What is chosen in the form of a page: pictures and price depend on it.
function choices(page) {
  const form = page.querySelector("[data-quote]"), data = form && new FormData(form);
  return (form?.dataset.quote.split(" ") ?? []).map((name) => [name, data.get(name) ?? ""]);
}

// This page as it is now.
function here() {
  const wanted = new URLSearchParams(location.search);
  for (const [name, value] of choices(document)) wanted.set(name, value);
  return `${location.pathname}?${wanted}`;
}

// Whether an answer shows what this page does, and so need not be loaded again.
const OF_ANSWER = ["notice", "undo"];
function isHere(answer, fresh) {
  const asked = (search) => `${new URLSearchParams([...new URLSearchParams(search)].filter(([name]) => !OF_ANSWER.includes(name)))}`;
  return asked(location.search) === asked(new URL(answer.url).search)
    && `${new URLSearchParams(choices(document))}` === `${new URLSearchParams(choices(fresh))}`;
}

let loading;
function show(fresh) {
  loading?.abort(); // what is still loading may be older
  replace(fresh);
  if (fresh.title) document.title = fresh.title;
}

async function refresh() {
  loading?.abort();
  const mine = loading = new AbortController();
  try {
    const { answer, fresh } = await load(here(), { signal: mine.signal });
    if (answer.ok) show(fresh);
  } catch (error) { if (error.name !== "AbortError") throw error; }
}

// ---- forms --------------------------------------------------------------------------------------------------------

async function send(form, button) {
  const data = new FormData(form, button);
  button?.setAttribute("aria-busy", "true");
  try {
    const address = button?.hasAttribute("formaction") ? button.formAction : form.action;
    const { answer, fresh } = await load(address, { method: "POST", body: new URLSearchParams(data) });
    const error = fresh.getElementById("error");
    if (error) notice(error.dataset.kind ?? "bad", ...error.childNodes);
    else if (!answer.ok) trouble();
    else if (new URL(answer.url).pathname !== location.pathname) location.assign(answer.url);
    else {
      // What was typed is now what the server has, except in a form for one more of the same.
      if (!form.matches("[data-keeps]")) form.querySelectorAll("input, textarea").forEach((one) => { one.defaultValue = one.value; });
      const key = form.id && fresh.querySelector(`#${form.id} input[name=key]`);
      if (key) form.elements.key.value = key.value; // sent again, it is a new request
      const told = [...fresh.getElementById("notice").childNodes];
      if (isHere(answer, fresh)) show(fresh);
      else await refresh();
      byId("notice").replaceChildren(...told);
    }
  } catch (error) { if (!(error instanceof SessionEnded)) trouble(); }
  button?.removeAttribute("aria-busy");
}

document.addEventListener("submit", (event) => {
  const form = event.target;
  if (!form.matches("[data-enhance]")) return;
  event.preventDefault();
  // Enter in a field presses the first button, which asks for the price.
  if (event.submitter?.formMethod === "get") refresh().catch(() => {});
  else if (event.submitter?.getAttribute("aria-busy") !== "true") send(form, event.submitter);
});

document.addEventListener("change", (event) => {
  const form = event.target.closest("[data-quote]");
  if (form?.dataset.quote.split(" ").includes(event.target.name)) refresh().catch(() => {});
});

// ---- uploads ------------------------------------------------------------------------------------------------------

// What to say about a file that was stored: of a picture its verdict, of an archive how many of its pictures are good.
function outcome({ images = [], refused = [], notes = [] }) {
  const bad = images.filter((image) => image.faults.length);
  if (!images.length) return ["good", notes.join("\n") || t("Captions read")]; // the notes stay on the page
  if (images.length === 1 && !refused.length) return bad.length
    ? ["bad", `${t("Stored, but not usable:")} ${bad[0].faults.map((fault) => fault.text).join("; ")}`] : ["good", t("Good")];
  const count = t("{all} stored, {good} of them good", { all: images.length, good: images.length - bad.length });
  return [refused.length || bad.length ? "bad" : "good", [count, ...refused.map((one) => one.detail)].join("\n")];
}

const TRY_AGAIN = [0, 408, 429, 500, 502, 503, 504]; // 0: no answer
const TRY_AGAIN_S = [1, 2, 4, 8, 15, 30];

// One request; `sent` is told how many bytes of the body have gone.
function post(address, body, sent) {
  return new Promise((done) => {
    const request = new XMLHttpRequest();
    request.open("POST", address);
    request.setRequestHeader("Accept", "application/json");
    request.upload.onprogress = (event) => { if (event.lengthComputable) sent(event.loaded, event.total); };
    request.onloadend = () => {
      let answer = {};
      try { answer = JSON.parse(request.responseText); } catch { /* not JSON: the status says enough */ }
      done({ status: request.status, url: request.responseURL, answer });
    };
    request.send(body);
  });
}

// What became of a file: the kind of the outcome, its words, and whether another attempt may succeed.
function judge({ status, url, answer }) {
  if (status === 201) return [...outcome(answer), false];
  if (url && isSignIn(url)) {
    ended();
    return ["bad", t("Not uploaded: your session has ended."), "later"];
  }
  const why = status === 0 ? t("Not uploaded: the connection was lost.") : t("Not uploaded: the service is busy.");
  if (TRY_AGAIN.includes(status)) return ["bad", why, "now"];
  return ["bad", Object.values(answer.faults ?? {})[0] ?? answer.detail ?? t("Not stored."), false];
}

const showShare = (bar, share) => { if (share < 1) bar.value = share; else bar.removeAttribute("value"); }; // sent; the server checks it

// Pieces stay on the machine that received them, so behind a proxy that alternates between machines they never add up.
let piecesArrive = true;

async function put(form, file, bar) {
  if (piecesArrive && file.size > Number(form.dataset.pieceBytes)) return putPieces(form, file, bar);
  const body = new FormData();
  body.append("files", file);
  return judge(await post(form.action, body, (loaded, total) => showShare(bar, loaded / total)));
}

// A large file goes in pieces. The server is asked first how much of it there is, from before a lost connection or a reload.
async function putPieces(form, file, bar) {
  const about = { name: file.name, size: file.size, modified: file.lastModified };
  let offset = 0, piece = new Blob();
  for (;;) {
    const done = await post(
      `${form.dataset.pieces}?${new URLSearchParams({ ...about, offset })}`, piece,
      (loaded) => showShare(bar, (offset + loaded) / file.size),
    );
    if (done.status !== 200 || !Number.isInteger(done.answer.offset)) return judge(done);
    if (done.answer.offset < offset) { // another machine answered: the file goes whole, as all after it
      piecesArrive = false;
      return put(form, file, bar);
    }
    offset = done.answer.offset;
    piece = file.slice(offset, offset + Number(form.dataset.pieceBytes));
  }
}

const pause = (ms) => new Promise((done) => {
  const timer = setTimeout(wake, ms);
  function wake() { clearTimeout(timer); removeEventListener("online", wake); done(); }
  addEventListener("online", wake);
});

// Attempts until it is stored or refused. Sent twice, the same file is stored once.
async function store(form, file, state) {
  const bar = document.createElement("progress"), words = document.createElement("span");
  bar.setAttribute("aria-label", t("Upload of {name}", { name: file.name }));
  state.className = "";
  state.replaceChildren(bar, words);
  for (let failed = 0; ; failed++) {
    bar.value = 0;
    words.textContent = "";
    const [kind, text, again] = await put(form, file, bar);
    const wait_s = TRY_AGAIN_S[failed];
    if (again !== "now" || wait_s === undefined) return [kind, text, again];
    words.textContent = `${text} ${t("Trying again in {wait} s …", { wait: wait_s })}`;
    await pause(1000 * wait_s);
  }
}

let queue = Promise.resolve(), waiting = 0, refreshed = 0;
const REFRESH_EVERY_MS = 5000; // the page, while files are uploaded
const isCaption = (file) => /\.(txt|caption|jsonl|csv)$/i.test(file.name);
const isArchive = (file) => /\.(zip|tar|tgz|tbz2?|txz|gz|bz2|xz)$/i.test(file.name);

// Why a file is not even sent; empty if it is.
function tooLarge(form, file) {
  const { mostBytes, most, mostUploadBytes, mostUpload } = form.dataset;
  if (isArchive(file)) return file.size > Number(mostUploadBytes)
    ? t("Not uploaded: an archive may have at most {most}. Divide it into several.", { most: mostUpload }) : "";
  return file.size > Number(mostBytes) ? t("Not uploaded: a picture may have at most {most}. Save a smaller one.", { most }) : "";
}

function enqueue(form, file, line) {
  const state = line.lastElementChild;
  waiting++;
  queue = queue.then(async () => {
    const why = tooLarge(form, file);
    const [kind, text, again] = why ? ["bad", why, false] : await store(form, file, state);
    state.className = kind;
    state.textContent = text;
    byId("upload-status").textContent = `${file.name}: ${text}`;
    if (again) offerRetry(form, file, line, state);
    if (kind === "good") line.remove();
    if (--waiting && Date.now() - refreshed < REFRESH_EVERY_MS) return;
    refreshed = Date.now();
    await refresh().catch(() => {}); // the banner says it
  });
}

function offerRetry(form, file, line, state) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = t("Retry");
  button.setAttribute("aria-label", t("Retry {name}", { name: file.name }));
  button.dataset.retry = "";
  button.addEventListener("click", () => { button.remove(); countRetries(); enqueue(form, file, line); });
  state.append(" ", button);
  countRetries();
}

function countRetries() {
  const failed = document.querySelectorAll("[data-retry]"), all = byId("retry-all");
  all.hidden = failed.length < 2;
  all.textContent = t("Retry all {number}", { number: failed.length });
}

function upload(form, files) {
  files.sort((a, b) => isCaption(a) - isCaption(b)); // captions after the pictures that they belong to
  for (const file of files) {
    const line = document.createElement("li"), name = document.createElement("span"), state = document.createElement("span");
    name.textContent = file.name;
    state.textContent = t("Waiting");
    line.append(name, state);
    byId("uploads").append(line);
    enqueue(form, file, line);
  }
  form.reset();
}

function prepareUpload(form) {
  const [input] = form.querySelectorAll("input[type=file]");
  byId("retry-all").addEventListener("click", () => document.querySelectorAll("[data-retry]").forEach((one) => one.click()));
  input.addEventListener("change", () => upload(form, [...input.files]));
  for (const kind of ["dragenter", "dragover"]) form.addEventListener(kind, (event) => {
    event.preventDefault();
    form.classList.add("over");
  });
  form.addEventListener("dragleave", (event) => { if (!form.contains(event.relatedTarget)) form.classList.remove("over"); });
  form.addEventListener("drop", (event) => {
    event.preventDefault();
    form.classList.remove("over");
    upload(form, [...event.dataTransfer.files]);
  });
}

// ---- events -------------------------------------------------------------------------------------------------------

const AT_MOST_EVERY_MS = 1000;
let source, due, polling, streamDelay = AT_MOST_EVERY_MS;

// Drawings have no events: while one is open, its region says how often to look.
function poll() {
  clearTimeout(polling);
  const every = document.querySelector("[data-poll]")?.dataset.poll;
  if (every) polling = setTimeout(() => refresh().catch(poll), Number(every)); // it calls this function again
}

function news() {
  due ??= setTimeout(() => { due = undefined; refresh().catch(() => {}); }, AT_MOST_EVERY_MS);
}

function follow() {
  poll();
  const address = document.querySelector("[data-events]")?.dataset.events;
  if (!address) { source?.close(); source = undefined; }
  if (!address || source) return;
  source = new EventSource(address);
  for (const kind of ["queued", "admitted", "status", "stage", "progress", "retry", "preview"]) source.addEventListener(kind, news);
  source.onopen = () => { streamDelay = AT_MOST_EVERY_MS; };
  source.onerror = () => {
    news(); // it tells a stream that has ended from a service that does not answer
    if (source?.readyState !== EventSource.CLOSED) return; // the browser connects again by itself
    source = undefined;
    setTimeout(follow, streamDelay);
    streamDelay = Math.min(2 * streamDelay, 30_000);
  };
}

// ---- small things -------------------------------------------------------------------------------------------------

document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  const code = byId(button.dataset.copy);
  try { await navigator.clipboard.writeText(code.textContent); } catch {
    getSelection().selectAllChildren(code); // no permission, or no https: select it for Ctrl-C
    notice("", t("Selected: press Ctrl-C to copy."));
    return;
  }
  button.textContent = t("Copied");
  byId("notice").replaceChildren();
  setTimeout(() => { button.textContent = t("Copy"); }, 2000);
});

document.addEventListener("input", (event) => {
  const shown = event.target.form?.querySelector(`[data-shows="${event.target.name}"]`);
  if (shown) shown.textContent = Number(event.target.value).toLocaleString(document.documentElement.lang);
});

// The server writes times in UTC. In English the browser knows which kind of English.
const pageLanguage = document.documentElement.lang === "en" ? undefined : document.documentElement.lang;
const times = new Intl.DateTimeFormat(pageLanguage, { dateStyle: "medium", timeStyle: "short" });
const timesToSeconds = new Intl.DateTimeFormat(pageLanguage, { dateStyle: "medium", timeStyle: "medium" });
function localize(time) {
  const at = new Date(time.dateTime);
  if (time.title || Number.isNaN(at.valueOf())) return;
  time.title = time.textContent;
  time.textContent = ("seconds" in time.dataset ? timesToSeconds : times).format(at);
}
function localizeOption(option) { // an <option> cannot contain a <time>
  option.textContent = option.textContent.replace(option.dataset.utc, timesToSeconds.format(new Date(option.dataset.at)));
}

function prepare(root) {
  root.querySelectorAll("time[datetime]").forEach(localize);
  root.querySelectorAll("option[data-at]").forEach(localizeOption);
  root.querySelectorAll("[data-copy], .with-script").forEach((one) => { one.hidden = false; });
  root.querySelectorAll(".without-script").forEach((one) => { one.hidden = true; });
}

remember(document);
prepare(document);
document.querySelectorAll("form[data-upload]").forEach(prepareUpload);
follow();
