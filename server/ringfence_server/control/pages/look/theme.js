// Light or dark as the room needs it; kept in this browser, and as the system says until somebody chooses.
(() => {
  const root = document.documentElement;
  const kept = localStorage.getItem("ringfence-theme");
  if (kept) root.dataset.theme = kept;
  window.ringfenceTheme = () => {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    localStorage.setItem("ringfence-theme", root.dataset.theme);
  };
})();
