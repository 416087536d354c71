"use strict";
{
  const field = document.querySelector("fieldset");
  const cards = document.querySelectorAll("[data-rung]");
  const articles = document.querySelectorAll("article");
  const said = document.getElementById("shown");
  const show = (rung) => {
    for (const card of cards) card.hidden = rung !== "all" && card.dataset.rung !== rung;
    const count = [...articles].filter((article) => !article.hidden).length;
    said.textContent = `${count} of ${articles.length} figures`;
  };
  // A link to a figure that the filter hides shows all again.
  const jump = () => {
    let id = location.hash.slice(1);
    try {
      id = decodeURIComponent(id);
    } catch {
      // An address with a lone % names no figure.
    }
    const target = id && document.getElementById(id);
    if (target && target.hidden) {
      field.querySelector("[value=all]").checked = true;
      show("all");
      target.scrollIntoView();
    }
  };
  field.hidden = false;
  field.addEventListener("change", (event) => show(event.target.value));
  addEventListener("hashchange", jump);
  show(field.querySelector(":checked").value);
  jump();
}
