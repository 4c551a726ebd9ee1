// Two pictures under one divider. Without this script they stand beside each other.

const t = globalThis.imprintText;
const byKey = { ArrowLeft: "previous", ArrowRight: "next" };

function slide(box) {
  const bar = document.createElement("div"), range = document.createElement("input"), cut = document.createElement("span");
  const label = document.createElement("label");
  label.textContent = t("Divider between both pictures");
  range.type = "range";
  range.id = "divider";
  label.htmlFor = range.id;
  range.max = 100;
  range.value = 50;
  bar.className = "compare-bar";
  bar.append(label, range);
  cut.className = "cut";
  box.append(cut);
  box.after(bar);
  box.classList.add("sliding");
  const picture = box.querySelector("figure + figure img");
  const place = () => {
    box.style.setProperty("--cut", `${range.value}%`);
    cut.style.height = `${picture.clientHeight}px`;
  };
  range.addEventListener("input", place);
  addEventListener("resize", place);
  picture.addEventListener("load", place);
  const follow = (event) => {
    if (event.type === "pointermove" && !event.buttons) return;
    const edge = box.getBoundingClientRect();
    range.value = ((event.clientX - edge.left) / edge.width) * 100;
    place();
  };
  for (const kind of ["pointerdown", "pointermove"]) box.addEventListener(kind, follow);
  box.addEventListener("dragstart", (event) => event.preventDefault());
  place();
}

document.querySelectorAll("[data-compare]").forEach(slide);
document.querySelectorAll("form[data-choose]").forEach((form) => {
  form.addEventListener("change", () => form.requestSubmit());
});
document.addEventListener("keydown", (event) => {
  if (event.target.matches("input, select, textarea") || event.altKey || event.ctrlKey || event.metaKey) return;
  document.getElementById(byKey[event.key])?.click();
});
