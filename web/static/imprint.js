// Progressive enhancement: every form works without this script, and no decision is made here.
//
// The server renders the page. An element with `data-live` and an id is replaced by its counterpart in a newly loaded
// page when it has changed. Forms, uploads and events all end in such a replacement.

const byId = (id) => document.getElementById(id);

// ---- replacing ----------------------------------------------------------------------------------------------------

const isTyping = (region) => {
  const at = document.activeElement;
  return region.contains(at) && at.matches("input:not([type=radio]), textarea") && at.value !== at.defaultValue;
};

// Open details and the key of the form differ between two loads, although the server changed nothing.
const shape = (region) => {
  const copy = region.cloneNode(true);
  copy.querySelectorAll("details").forEach((one) => one.removeAttribute("open"));
  copy.querySelectorAll("input[name=key]").forEach((one) => one.remove());
  prepare(copy);
  return copy.outerHTML;
};

function replace(fresh, only) {
  for (const region of document.querySelectorAll(only)) {
    const next = fresh.getElementById(region.id);
    // A form for one more of the same keeps what was typed, which the server does not know.
    if (next?.querySelector("[data-keeps]") && region.querySelector("[data-keeps]")) continue;
    if (!next || isTyping(region) || shape(region) === shape(next)) continue;
    const focused = region.contains(document.activeElement) ? document.activeElement.id : "";
    const open = [...region.querySelectorAll("details[open] > summary[id]")].map((summary) => summary.id);
    const wasOpen = [...region.querySelectorAll("details")].some((one) => one.open);
    region.replaceWith(document.adoptNode(next));
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
  if (kind === "bad") box.scrollIntoView({ block: "nearest" });
}

const trouble = () => notice("bad", "The service does not answer. Try again in a moment.");

async function load(address, options = {}) {
  const answer = await fetch(address, { credentials: "same-origin", ...options });
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
  return { answer, fresh };
}

async function refresh() {
  const { answer, fresh } = await load(location.pathname + location.search);
  if (answer.redirected && new URL(answer.url).pathname === "/sign-in") location.reload();
  else if (answer.ok) await settle(fresh);
}

// The price depends on the choices in the form, which the fresh page does not know: it is loaded separately.
async function settle(fresh) {
  replace(fresh, "[data-live]:not(#price)");
  if (fresh.title) document.title = fresh.title;
  const form = document.querySelector("[data-quote]");
  if (form) await ask(form);
}

// ---- forms --------------------------------------------------------------------------------------------------------

async function send(form, button) {
  const data = new FormData(form, button);
  button?.setAttribute("aria-busy", "true");
  try {
    const address = button?.hasAttribute("formaction") ? button.formAction : form.action;
    const { answer, fresh } = await load(address, { method: "POST", body: new URLSearchParams(data) });
    const error = fresh.getElementById("error");
    if (error) notice("bad", ...error.childNodes);
    else if (!answer.ok) trouble();
    else if (new URL(answer.url).pathname !== location.pathname) location.assign(answer.url);
    else {
      // What was typed is now what the server has, except in a form for one more of the same.
      if (!form.matches("[data-keeps]")) form.querySelectorAll("input, textarea").forEach((one) => { one.defaultValue = one.value; });
      const key = form.id && fresh.querySelector(`#${form.id} input[name=key]`);
      if (key) form.elements.key.value = key.value; // sent again, it is a new request
      await settle(fresh);
      byId("notice").replaceChildren(...fresh.getElementById("notice").childNodes);
    }
  } catch { trouble(); }
  button?.removeAttribute("aria-busy");
}

document.addEventListener("submit", (event) => {
  const form = event.target;
  if (!form.matches("[data-enhance]") || event.submitter?.formMethod === "get") return;
  event.preventDefault();
  if (event.submitter?.getAttribute("aria-busy") !== "true") send(form, event.submitter);
});

let asking;
async function ask(form) {
  asking?.abort();
  asking = new AbortController();
  const wanted = new URLSearchParams();
  for (const name of form.dataset.quote.split(" ")) wanted.set(name, new FormData(form).get(name) ?? "");
  try {
    const { answer, fresh } = await load(`${location.pathname}?${wanted}`, { signal: asking.signal });
    if (answer.ok) replace(fresh, "#price, #pictures, #pictures-head"); // pictures are judged for the base model
  } catch (error) { if (error.name !== "AbortError") trouble(); }
}
document.addEventListener("change", (event) => {
  const form = event.target.closest("[data-quote]");
  if (form?.dataset.quote.split(" ").includes(event.target.name)) ask(form);
});

// ---- uploads ------------------------------------------------------------------------------------------------------

// What to say about a file that was stored: of a picture its verdict, of an archive how many of its pictures are good.
function outcome({ images = [], refused = [], notes = [] }) {
  const bad = images.filter((image) => image.faults.length);
  const more = [...refused.map((one) => one.detail), ...notes];
  if (images.length === 1 && !more.length) return bad.length
    ? ["bad", `Stored, but not usable: ${bad[0].faults.map((fault) => fault.text).join("; ")}`] : ["good", "Good"];
  if (!images.length) return more.length ? ["bad", more.join("; ")] : ["good", "Captions read"];
  const count = `${images.length} stored, ${images.length - bad.length} of them good`;
  return [more.length || bad.length ? "bad" : "good", [count, ...more].join("; ")];
}

function put(form, file, line) {
  return new Promise((done) => {
    const request = new XMLHttpRequest(), body = new FormData();
    body.append("files", file);
    request.open("POST", form.action);
    request.setRequestHeader("Accept", "application/json");
    const bar = line.querySelector("progress");
    request.upload.onprogress = (event) => { if (event.lengthComputable) bar.value = event.loaded / event.total; };
    request.upload.onload = () => bar.removeAttribute("value"); // sent; the server now checks it
    request.onerror = () => done(["bad", "Not uploaded: the connection was lost. Choose the file again."]);
    request.onload = () => {
      let answer = {};
      try { answer = JSON.parse(request.responseText); } catch { /* not JSON: handled below */ }
      done(request.status === 201 ? outcome(answer)
        : ["bad", Object.values(answer.faults ?? {})[0] ?? answer.detail ?? "Not stored. Sign in again and retry."]);
    };
    request.send(body);
  });
}

let queue = Promise.resolve();
const isCaption = (file) => /\.(txt|caption|jsonl|csv)$/i.test(file.name);
const isArchive = (file) => /\.(zip|tar|tgz|tbz2?|txz|gz|bz2|xz)$/i.test(file.name);

function upload(form, files) {
  files.sort((a, b) => isCaption(a) - isCaption(b)); // captions after the pictures that they belong to
  for (const file of files) {
    const line = document.createElement("li"), name = document.createElement("span"), state = document.createElement("span");
    const bar = document.createElement("progress");
    name.textContent = file.name;
    bar.setAttribute("aria-label", `Upload of ${file.name}`);
    bar.value = 0;
    state.append(bar);
    line.append(name, state);
    byId("uploads").append(line);
    queue = queue.then(async () => {
      const [kind, text] = file.size > Number(isArchive(file) ? form.dataset.mostUploadBytes : form.dataset.mostBytes)
        ? ["bad", "The file is too large."] : await put(form, file, line);
      state.className = kind;
      state.textContent = text;
      byId("upload-status").textContent = `${file.name}: ${text}`;
      if (kind === "good") line.remove();
      await refresh().catch(trouble);
    });
  }
  form.reset();
}

function prepareUpload(form) {
  const [input] = form.querySelectorAll("input[type=file]");
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
let source, due, polling;

// Drawings have no events: while one is open, its region says how often to look.
function poll() {
  clearTimeout(polling);
  const every = document.querySelector("[data-poll]")?.dataset.poll;
  if (every) polling = setTimeout(async () => {
    try {
      const { answer, fresh } = await load(location.pathname + location.search);
      if (answer.redirected) location.reload(); // the session has ended
      else if (answer.ok) replace(fresh, "[data-live]:not(#price)"); // it calls this function again
      else poll();
    } catch { poll(); }
  }, Number(every));
}

function follow() {
  poll();
  const address = document.querySelector("[data-events]")?.dataset.events;
  if (!address || source) {
    if (!address) { source?.close(); source = undefined; }
    return;
  }
  source = new EventSource(address);
  const news = () => { due ??= setTimeout(() => { due = undefined; refresh().catch(() => {}); }, AT_MOST_EVERY_MS); };
  for (const kind of ["queued", "admitted", "status", "stage", "progress", "retry", "preview"]) source.addEventListener(kind, news);
  source.onerror = () => { byId("connection").textContent = "The connection was lost. Reconnecting."; news(); };
  source.onopen = () => { byId("connection").textContent = ""; };
}

// ---- small things -------------------------------------------------------------------------------------------------

document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  const code = byId(button.dataset.copy);
  try { await navigator.clipboard.writeText(code.textContent); } catch {
    getSelection().selectAllChildren(code); // no permission, or no https: select it for Ctrl-C
    notice("", "Selected: press Ctrl-C to copy.");
    return;
  }
  button.textContent = "Copied";
  byId("notice").replaceChildren();
  setTimeout(() => { button.textContent = "Copy"; }, 2000);
});

document.addEventListener("input", (event) => {
  const shown = event.target.form?.querySelector(`[data-shows="${event.target.name}"]`);
  if (shown) shown.textContent = event.target.value;
});

// The server writes times in UTC.
const times = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
function localize(time) {
  const at = new Date(time.dateTime);
  if (time.title || Number.isNaN(at.valueOf())) return;
  time.title = time.textContent;
  time.textContent = times.format(at);
}

function prepare(root) {
  root.querySelectorAll("time[datetime]").forEach(localize);
  root.querySelectorAll("[data-copy], .with-script").forEach((one) => { one.hidden = false; });
  root.querySelectorAll(".without-script").forEach((one) => { one.hidden = true; });
}

prepare(document);
document.querySelectorAll("form[data-upload]").forEach(prepareUpload);
follow();
