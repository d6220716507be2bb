// Runs before anything is drawn, so that the page never shows in the other theme first.
{
  try {
    const chosen = localStorage.getItem("midstep.theme");
    if (chosen === "dark" || chosen === "light") document.documentElement.dataset.theme = chosen;
  } catch {
    // This browser may not keep anything.
  }
}
