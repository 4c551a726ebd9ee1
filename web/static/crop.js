// The frame over a picture that says which part is trained. The four fields of the form are the truth; this moves them.

const t = globalThis.imprintText;
const box = document.getElementById("cropper"), form = document.getElementById("crop-form");

if (box && form) {
  const fields = ["left", "top", "width", "height"].map((name) => form.elements[name]);
  const whole = { width: Number(box.dataset.width), height: Number(box.dataset.height) };
  const frame = document.createElement("div"), grip = document.createElement("span");
  frame.className = "frame";
  frame.tabIndex = 0;
  frame.setAttribute("role", "group");
  frame.setAttribute("aria-label", t("The part that is trained: arrow keys move it, with Shift they change its size"));
  grip.className = "grip";
  frame.append(grip);
  box.append(frame);

  const read = () => fields.map((field) => Number(field.value) || 0);
  const shape = (() => { const [, , width, height] = read(); return width / height || 1; })();
  const between = (value, least, most) => Math.min(Math.max(value, least), most);

  function show() {
    const [left, top, width, height] = read();
    frame.style.left = `${(100 * left) / whole.width}%`;
    frame.style.top = `${(100 * top) / whole.height}%`;
    frame.style.width = `${(100 * width) / whole.width}%`;
    frame.style.height = `${(100 * height) / whole.height}%`;
  }

  // The size first, as large as the picture allows in this shape; then the place, inside the picture.
  function write(left, top, width) {
    width = between(width, Math.max(16, whole.width / 50), Math.min(whole.width, whole.height * shape));
    const height = width / shape;
    const values = [between(left, 0, whole.width - width), between(top, 0, whole.height - height), width, height];
    values.forEach((value, at) => { fields[at].value = Math.floor(value); });
    show();
  }

  const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  frame.addEventListener("keydown", (event) => {
    const step = steps[event.key];
    if (!step) return;
    event.preventDefault();
    const [left, top, width] = read(), by = Math.max(1, whole.width / 100);
    if (event.shiftKey) write(left, top, width + (step[0] - step[1]) * by);
    else write(left + step[0] * by, top + step[1] * by, width);
  });

  let from;
  frame.addEventListener("pointerdown", (event) => {
    from = { x: event.clientX, y: event.clientY, at: read(), sizes: event.target === grip };
    frame.setPointerCapture(event.pointerId);
    event.preventDefault();
    frame.focus();
  });
  frame.addEventListener("pointermove", (event) => {
    if (!from) return;
    const scale = whole.width / box.clientWidth;
    const x = (event.clientX - from.x) * scale, y = (event.clientY - from.y) * scale;
    const [left, top, width] = from.at;
    if (from.sizes) write(left, top, width + Math.max(x, y * shape));
    else write(left + x, top + y, width);
  });
  for (const kind of ["pointerup", "pointercancel"]) frame.addEventListener(kind, () => { from = undefined; });
  form.addEventListener("input", show);
  show();
}
