// Ctrl-Enter generates, Esc stops.
document.addEventListener("keydown", (event) => {
  const press = (id) => {
    const button = document.getElementById(id);
    if (!button || button.disabled) return;
    document.activeElement?.blur(); // fields hand over what was typed when they lose the focus
    setTimeout(() => button.click(), 50);
  };
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    event.stopPropagation();
    press("generate");
  } else if (event.key === "Escape" && !document.querySelector("[role=listbox]")) press("stop"); // else a menu closes
}, true);
