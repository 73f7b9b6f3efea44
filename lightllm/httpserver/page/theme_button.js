/** The switch between the system's colours, light and dark ones. */

import { icon } from "./dom.js";

const THEMES = [
  ["system", "screen"],
  ["light", "sun"],
  ["dark", "moon"],
];

export function themeButton(button) {
  const root = document.documentElement;
  const draw = () => {
    const [name, drawn] = THEMES.find(([each]) => each === (root.dataset.theme ?? "system"));
    button.replaceChildren(icon(drawn));
    button.title = `Colours: ${name}`;
    button.setAttribute("aria-label", `Colours: ${name}`);
  };
  button.addEventListener("click", () => {
    const at = THEMES.findIndex(([each]) => each === (root.dataset.theme ?? "system"));
    const [name] = THEMES[(at + 1) % THEMES.length];
    if (name === "system") delete root.dataset.theme;
    else root.dataset.theme = name;
    try {
      localStorage.setItem("lightllm.theme", name);
    } catch {
      // Storage is blocked: it holds until the page is left.
    }
    draw();
  });
  draw();
}
