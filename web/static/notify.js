// Notices of the browser: switched on the account's page, shown when a training that is open in a tab changes its status.

const t = globalThis.imprintText;
const KEY = "imprint.notify";
const isOn = () => localStorage.getItem(KEY) === "on" && globalThis.Notification?.permission === "granted";

function show(button) {
  button.textContent = isOn() ? t("Notices of this browser: on") : t("Notices of this browser: off");
  button.setAttribute("aria-pressed", isOn());
}

document.querySelectorAll("[data-notify]").forEach(show);
document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-notify]");
  if (!button) return;
  if (isOn()) localStorage.removeItem(KEY);
  else if ((await globalThis.Notification?.requestPermission()) === "granted") localStorage.setItem(KEY, "on");
  else button.after(` ${t("The browser does not allow it: change that in its settings for this site.")}`);
  show(button);
});

const announce = document.getElementById("announce");
const status = () => announce.textContent.split(",")[0].trim();
if (announce) {
  let before = status();
  new MutationObserver(() => {
    const now = status();
    if (now !== before && isOn() && document.hidden) new Notification(document.title, { tag: location.pathname });
    before = now;
  }).observe(announce, { childList: true, characterData: true, subtree: true });
}
