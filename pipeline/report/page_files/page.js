"use strict";
{
  const SHOWN = 200; // entries of the list at a time
  const SIDE = 64; // px, of a frame
  const LEVELS = 35;
  // matplotlib's viridis, from the lowest to the highest
  const SHADES = ["#440154", "#472d7b", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962", "#addc30", "#fde725"];

  // --- tables -------------------------------------------------------------------------------

  const compare = (a, b) => {
    if (a === "" || b === "") return (a === "") - (b === "");
    const numbers = [Number(a), Number(b)];
    return numbers.some(Number.isNaN) ? a.localeCompare(b, "en", { numeric: true }) : numbers[0] - numbers[1];
  };

  const sort = (table, column, direction) => {
    const body = table.tBodies[0];
    const key = (row) => row.cells[column].dataset.order;
    const rows = [...body.rows].sort((a, b) => {
      const [left, right] = [key(a), key(b)];
      const known = left !== "" && right !== "";
      return known ? direction * compare(left, right) : compare(left, right); // what lacks comes last
    });
    body.append(...rows);
  };

  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      head.querySelector("button").addEventListener("click", () => {
        const sorted = head.getAttribute("aria-sort");
        const numbers = [...table.tBodies[0].rows].every((row) => !Number.isNaN(Number(row.cells[column].dataset.order)));
        const ascending = sorted ? sorted === "descending" : !numbers; // the highest number first
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
        sort(table, column, ascending ? 1 : -1);
      });
    });
  }

  // --- what is wider than the screen ---------------------------------------------------------

  const hint = () => {
    for (const own of document.querySelectorAll(".scroll")) {
      own.classList.toggle("overflows", own.scrollWidth > own.clientWidth + 1);
    }
  };
  addEventListener("load", hint);
  addEventListener("resize", hint);
  for (const own of document.querySelectorAll("details")) own.addEventListener("toggle", hint);
  hint();

  // --- videos -------------------------------------------------------------------------------

  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const make = (name, attributes, ...children) => {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  };

  const perCent = (tenths) => (tenths / 10).toFixed(1);
  const has = (text, words) => words.split(/\s+/).every((word) => text.includes(word));

  const browse = () => {
    const { classes, entries, frames } = read("data");
    const videos = entries.map(([row, id, label, ranked, shares, disagreement, influence, truth], rank) => ({
      rank, row, id, ranked, shares, disagreement, influence, truth,
      label: classes[label],
      said: classes[ranked[0]],
      right: label === ranked[0],
      share: perCent(shares[0]),
      subject: `${id} ${classes[label]}`.toLowerCase(),
      answer: classes[ranked[0]].toLowerCase(),
    }));
    let strips; // parsed when the first video is looked at
    const pictures = () => (strips ??= read("strips"));

    const list = document.getElementById("list");
    const detail = document.getElementById("detail");
    const count = document.getElementById("count");
    const [search, which, order, framed] = ["search", "show", "order", "framed"].map((id) => document.getElementById(id));
    const orders = {
      surest: (a, b) => a.rank - b.rank,
      doubtful: (a, b) => b.rank - a.rank,
      disagreement: (a, b) => b.disagreement - a.disagreement,
      id: (a, b) => a.id.localeCompare(b.id, "en", { numeric: true }),
    };
    let found = [];
    let chosen = 0;

    const matches = (video) => {
      const [subject, answer] = search.value.toLowerCase().trim().split(/\s*(?:>|\btaken for\b)\s*/);
      const found = answer === undefined
        ? has(`${video.subject} ${video.answer}`, subject)
        : has(video.subject, subject) && has(video.answer, answer);
      return found
        && (which.value === "all" || video.right === (which.value === "right"))
        && (!framed.checked || video.row in pictures());
    };

    const entry = (video, place) => make("li", { role: "option", id: `video-${place}`, "aria-selected": "false" },
      video.id,
      make("span", {}, `${video.share} %`),
      make("small", {}, video.right ? `${video.label}, right` : `${video.label} taken for ${video.said}`));

    const frame = (video, strip, place) => {
      const level = parseInt(video.influence[place], 36);
      const picture = make("div", { class: "picture" });
      if (strip) {
        picture.style.backgroundImage = `url(${strip})`;
        picture.style.backgroundPosition = `-${frames[place] * SIDE}px 0`;
      }
      const bar = make("i", {});
      bar.style.height = `${100 * level / LEVELS}%`;
      bar.style.background = SHADES[Math.round((SHADES.length - 1) * level / LEVELS)];
      const cell = make("li", { class: "frame" }, ...(strip ? [picture] : []), make("div", { class: "level" }, bar));
      if (video.truth) {
        const shown = make("i", {});
        shown.style.height = `${100 * parseInt(video.truth[place], 36) / LEVELS}%`;
        cell.append(make("div", { class: "truth" }, shown));
      }
      cell.append(String(place + 1));
      return cell;
    };

    const strongest = (video) => [...video.influence]
      .map((digit, place) => [parseInt(digit, 36), place + 1])
      .sort((a, b) => b[0] - a[0]).slice(0, 3).map(([, place]) => place).join(", ");

    const describe = (video) => {
      const strip = pictures()[video.row];
      const rows = video.ranked.map((k, n) => make("tr", {},
        make("th", { scope: "row" }, classes[k]),
        make("td", {}, make("meter", { min: 0, max: 1000, value: video.shares[n], "aria-label": `probability of ${classes[k]}` })),
        make("td", {}, `${perCent(video.shares[n])} %`)));
      const shares = make("table", { class: "shares" }, make("caption", {}, "Most likely classes"), make("tbody", {}, ...rows));
      const label = `Influence of ${video.influence.length} frames; the strongest are ${strongest(video)}.`;
      const cells = [...video.influence].map((_, place) => frame(video, strip, place));
      detail.replaceChildren(
        make("h3", {}, video.id),
        make("p", {}, video.right ? `${video.label}: right` : `${video.label}, taken for ${video.said}`,
          `, with a probability of ${video.share} %. ${perCent(video.disagreement)} % of the networks disagree.`),
        make("ol", { class: "frames", "aria-label": label }, ...cells),
        make("p", {}, strip ? "" : "The frames of this video are not in the page. ",
          "Coloured bars: influence, from the lowest (purple) to the highest (yellow).",
          video.truth ? " Grey bars: true intensity of the label." : ""),
        shares);
    };

    const choose = (place, scroll = true) => {
      const options = list.children;
      if (!options.length) return;
      options[chosen]?.setAttribute("aria-selected", "false");
      chosen = Math.max(0, Math.min(options.length - 1, place));
      options[chosen].setAttribute("aria-selected", "true");
      list.setAttribute("aria-activedescendant", options[chosen].id);
      if (scroll) options[chosen].scrollIntoView({ block: "nearest" });
      describe(found[chosen]);
    };

    const update = () => {
      found = videos.filter(matches).sort(orders[order.value]);
      list.replaceChildren(...found.slice(0, SHOWN).map(entry));
      list.hidden = !found.length;
      list.removeAttribute("aria-activedescendant");
      const rest = found.length > SHOWN ? `; the first ${SHOWN} are listed` : "";
      count.textContent = `${found.length} of ${videos.length} videos${rest}`;
      chosen = 0;
      detail.replaceChildren();
      choose(0, false);
    };

    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: -Infinity, End: Infinity };
    list.addEventListener("keydown", (event) => {
      if (!(event.key in steps)) return;
      event.preventDefault();
      choose(chosen + steps[event.key]);
    });
    list.addEventListener("click", (event) => {
      const option = event.target.closest("li");
      if (option) choose([...list.children].indexOf(option));
    });
    document.getElementById("controls").addEventListener("input", update);
    document.getElementById("controls").addEventListener("submit", (event) => event.preventDefault());
    if (videos.every((video) => video.right)) which.value = "all";
    update();
  };

  if (document.getElementById("data")) browse();
}
