// Filter and sort the class cards. The page is complete without this.
(() => {
  const form = document.querySelector("form.tools");
  const list = document.querySelector(".cards");
  const cards = [...list.children];
  const show = () => {
    const wanted = form.elements.find.value.trim().toLowerCase();
    const byAccuracy = form.elements.order.value === "accuracy";
    let shown = 0;
    for (const card of cards) {
      card.hidden = !card.dataset.name.includes(wanted);
      shown += card.hidden ? 0 : 1;
    }
    const order = byAccuracy ? [...cards].sort((a, b) => a.dataset.accuracy - b.dataset.accuracy) : cards;
    list.append(...order);
    form.querySelector("output").textContent = wanted ? `${shown} of ${cards.length} classes` : "";
  };
  const reveal = () => {
    const details = document.querySelector(`${location.hash || "#none"} > details`);
    if (details) details.open = true;
  };
  form.hidden = cards.length < 8;
  form.addEventListener("input", show);
  form.addEventListener("submit", (event) => event.preventDefault());
  addEventListener("hashchange", reveal);
  reveal();
})();
