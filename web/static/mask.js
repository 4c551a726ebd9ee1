// The mask of a picture, drawn on it. The mask is a canvas of its own that is opaque where the picture does not count;
// the visible canvas shows the picture with the mask over it as a shade.

const box = document.getElementById("masker");
const byId = (id) => document.getElementById(id);
const MOST_UNDO = 20;

const load = (address) => new Promise((done, failed) => {
  const picture = new Image();
  picture.onload = () => done(picture);
  picture.onerror = failed;
  picture.src = address;
});

async function start() {
  const picture = await load(box.dataset.picture);
  const shown = byId("mask-canvas"), shade = document.createElement("canvas");
  const width = shown.width = shade.width = picture.naturalWidth, height = shown.height = shade.height = picture.naturalHeight;
  const view = shown.getContext("2d"), mask = shade.getContext("2d", { willReadFrequently: true });
  const before = [];
  let last, cursor = { x: width / 2, y: height / 2 }, byKey = false;

  const tool = () => box.querySelector("[name=tool]:checked").value;
  const radius = () => (Number(byId("mask-size").value) / 200) * Math.max(width, height);

  function draw() {
    view.drawImage(picture, 0, 0);
    view.globalAlpha = 0.65;
    view.drawImage(shade, 0, 0);
    view.globalAlpha = 1;
    if (!byKey) return;
    for (const [colour, line] of [["#000", 5], ["#fff", 2]]) {
      view.strokeStyle = colour;
      view.lineWidth = line;
      view.beginPath();
      view.arc(cursor.x, cursor.y, Math.max(radius(), 3), 0, 7);
      view.stroke();
    }
  }

  function fill() {
    mask.globalCompositeOperation = "source-over";
    mask.fillStyle = "#000";
    mask.fillRect(0, 0, width, height);
  }

  function remember() {
    before.push(mask.getImageData(0, 0, width, height));
    if (before.length > MOST_UNDO) before.shift();
    byId("mask-undo").disabled = false;
    byId("mask-fault").textContent = "";
  }

  function stroke(from, to) {
    mask.globalCompositeOperation = tool() === "brush" ? "destination-out" : "source-over";
    mask.strokeStyle = "#000";
    mask.lineCap = "round";
    mask.lineWidth = 2 * radius();
    mask.beginPath();
    mask.moveTo(from.x, from.y);
    mask.lineTo(to.x, to.y + 0.01); // a line without length is not drawn by every browser
    mask.stroke();
    draw();
  }

  // Opacity of the shade from the lightness of a mask, or the other way round.
  function convert(change) {
    const pixels = mask.getImageData(0, 0, width, height);
    for (let at = 0; at < pixels.data.length; at += 4) change(pixels.data, at);
    return pixels;
  }

  fill();
  if (box.dataset.mask) {
    mask.drawImage(await load(box.dataset.mask), 0, 0, width, height);
    mask.putImageData(convert((data, at) => {
      data[at + 3] = 255 - data[at];
      data[at] = data[at + 1] = data[at + 2] = 0;
    }), 0, 0);
  }
  draw();

  const place = (event) => {
    const edge = shown.getBoundingClientRect();
    return { x: ((event.clientX - edge.left) / edge.width) * width, y: ((event.clientY - edge.top) / edge.height) * height };
  };
  shown.addEventListener("pointerdown", (event) => {
    byKey = false;
    shown.setPointerCapture(event.pointerId);
    shown.focus({ preventScroll: true });
    event.preventDefault();
    remember();
    last = place(event);
    stroke(last, last);
  });
  shown.addEventListener("pointermove", (event) => {
    if (!last) return;
    const next = place(event);
    stroke(last, next);
    last = cursor = next;
  });
  for (const kind of ["pointerup", "pointercancel"]) shown.addEventListener(kind, () => { last = undefined; });

  const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  shown.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const step = steps[event.key], size = byId("mask-size");
    if (step) {
      const by = Math.max(width, height) / (event.shiftKey ? 12 : 60);
      cursor = { x: Math.min(Math.max(cursor.x + step[0] * by, 0), width), y: Math.min(Math.max(cursor.y + step[1] * by, 0), height) };
    } else if (event.key === " ") { remember(); stroke(cursor, cursor); }
    else if (event.key === "b" || event.key === "e") box.querySelector(`[value=${event.key === "b" ? "brush" : "eraser"}]`).checked = true;
    else if (event.key === "+" || event.key === "-") size.value = Number(size.value) + (event.key === "+" ? 2 : -2);
    else return;
    event.preventDefault();
    byKey = true;
    draw();
  });
  shown.addEventListener("blur", () => { byKey = false; draw(); });

  byId("mask-undo").addEventListener("click", () => {
    mask.putImageData(before.pop(), 0, 0);
    byId("mask-undo").disabled = !before.length;
    draw();
  });
  byId("mask-clear").addEventListener("click", () => { remember(); fill(); draw(); });
  byId("mask-invert").addEventListener("click", () => {
    remember();
    mask.putImageData(convert((data, at) => { data[at + 3] = 255 - data[at + 3]; }), 0, 0);
    draw();
  });
  byId("mask-save").addEventListener("click", async (event) => {
    const fault = byId("mask-fault"), button = event.target, out = document.createElement("canvas");
    let most = 0;
    const pixels = convert((data, at) => {
      const light = 255 - data[at + 3];
      most = Math.max(most, light);
      data[at] = data[at + 1] = data[at + 2] = light;
      data[at + 3] = 255;
    });
    fault.textContent = most < 128 ? box.dataset.nothing : "";
    if (most < 128) return;
    out.width = width;
    out.height = height;
    out.getContext("2d").putImageData(pixels, 0, 0);
    button.setAttribute("aria-busy", "true");
    try {
      const body = new FormData();
      body.append("files", await new Promise((done) => out.toBlob(done, "image/png")), "mask.png");
      const answer = await fetch(box.dataset.action, { method: "POST", body, headers: { Accept: "application/json" } });
      const told = await answer.json().catch(() => ({}));
      if (answer.status === 201) { location.assign(box.dataset.then); return; }
      fault.textContent = Object.values(told.faults ?? {})[0] ?? told.detail ?? box.dataset.trouble;
    } catch { fault.textContent = box.dataset.trouble; }
    button.removeAttribute("aria-busy");
  });
}

if (box) start();
