// Runs before anything is painted, so that a chosen theme does not flash the other one.
"use strict";
try {
  const theme = localStorage.getItem("lightllm.theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // Storage is blocked: the system's preference holds.
}
