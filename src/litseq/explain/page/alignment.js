// Which source word stands behind which output word, as far as the weights say.

/** Mean weights (T, S) of a choice of layers and heads; -1 takes all. */
function crossWeights(detail, layer, head) {
  if (detail.weights) return rowsOf(detail.weights);
  const items = detail.attention.filter(
    (item) => item.kind === "cross" && (layer < 0 || item.layer === layer),
  );
  return meanTable(
    items.flatMap(
      (item) => (
        head < 0 ? range(item.weights.shape[0]) : [head]
      ).map((h) => weightsOf(detail, item, h)),
    ),
  );
}

const hasCross = (detail) =>
  detail.weights || detail.attention?.some((item) => item.kind === "cross");

parts.alignment = function drawAlignment(sentence) {
  const { detail } = sentence;
  if (!hasCross(detail)) return [note("alignment.none")];
  const chosen = state.alignment;
  const [rows, columns] = sides.cross(sentence);
  const box = h("div", {});
  function update() {
    const table = crossWeights(detail, chosen.layer, chosen.head);
    const weights = mergeTable(table, rows.words, columns.words);
    const links = weights.map(argmax);
    const line = readout();
    const [labelsOf, columnsOf] = [rows.labels, columns.labels];
    const lines = tokenLines(
      {
        rows: labelsOf,
        columns: columnsOf,
        weights,
        label: tell("alignment.lines"),
        onhover: (r) => show(r, links[r], true),
      },
    );
    // begin at the surest row, the pieces at the boundaries aside
    const surest = weights.map((row, r) =>
      /^<|^\u2581?$/.test(labelsOf[r]) || columnsOf[links[r]].startsWith("<") ? 0 : row[links[r]]);
    const first = argmax(surest);
    const grid = matrix({
      label: tell("alignment.matrix"), rows: labelsOf, columns: columnsOf,
      cell: (r, c) => ({ share: weights[r][c], text: format(weights[r][c], 2).replace("0.", ".") }),
      speak: (r, c) => tell(
        "attention.speak",
        { row: labelsOf[r], column: columnsOf[c], weight: format(weights[r][c], 2) },
      ),
      onmove: (r, c) => show(r, c),
      start: [first, links[first]],
    });
    function show(r, c, fromLines = false) {
      lines.highlight(r);
      if (fromLines) grid.moveTo(r, c, { quiet: true });
      line.replaceChildren(say("alignment.cell", {
        row: token(labelsOf[r], 24), column: token(columnsOf[c], 24),
        best: token(columnsOf[links[r]], 24), weight: number(weights[r][c], 3),
      }));
    }
    show(first, links[first]);
    box.replaceChildren(
      h("div", { class: "pair" },
        h("div", {}, grid.element, line, legend("0", "1", tell("attention.weight"))),
        h(
          "div",
          { class: "beside" },
          lines.element,
          h("p", { class: "axis" }, tell("kind.cross_lines")),
        )),
      h(
        "p",
        { class: "data-line" },
        tell("alignment.pharaoh"),
        h("br"),
        h(
          "code",
          { class: "pharaoh" },
          links.map((source, target) => `${source}-${target}`).join(" "),
        ),
      ),
      asTable(
        {
          caption: tell("alignment.matrix"),
          corner: tell("kind.cross_corner"),
          rows: labelsOf,
          columns: columnsOf,
          text: (r, c) => number(weights[r][c], 3),
        },
      ),
    );
  }
  const controls = [];
  if (detail.attention) {
    const items = detail.attention.filter((item) => item.kind === "cross");
    if (items.length === 0) return [note("alignment.none")];
    if (!items.some((item) => item.layer === chosen.layer)) chosen.layer = -1;
    const heads = items[0].weights.shape[0];
    chosen.head = Math.min(chosen.head, heads - 1);
    const layerNames = items.map((item) => tell("kind.layer", { layer: String(item.layer + 1) }));
    controls.push(
      dropdown({
        label: tell("attention.column_layer"), options: [tell("alignment.mean"), ...layerNames],
        selected: 1 + items.findIndex((item) => item.layer === chosen.layer),
        onchange: (index) => { chosen.layer = index ? items[index - 1].layer : -1; update(); },
      }).element,
      dropdown({
        label: tell("attention.column_head"), options: [
          tell("alignment.mean"),
          ...range(heads).map((head) => String(headNumber(items[0], head) + 1)),
        ],
        selected: 1 + chosen.head,
        onchange: (index) => { chosen.head = index - 1; update(); },
      }).element);
  }
  update();
  return [controls.length > 0 ? h("div", { class: "controls" }, controls) : null, box];
};

parts.caution = function drawCaution(sentence) {
  const { detail, leave_one_out: without } = sentence;
  const papers = h("ul", { class: "papers" }, lookUp("caution.papers").map(({ text, link }) =>
    h(
      "li",
      {},
      text,
      " ",
      h("a", { href: link, rel: "noreferrer" }, link.replace("https://", "")),
    )));
  const parts = [papers];
  if (without.length > 0 && hasCross(detail)) {
    const weights = crossWeights(detail, -1, -1);
    const received = sentence.src.tokens.map((_, s) => sum(weights.map((row) => row[s])));
    const lost = without.map((logProb) => (logProb === null ? null : sentence.log_prob - logProb));
    const [mostReceived, mostLost] = [
      Math.max(...received),
      Math.max(...lost.map((x) => x ?? 0), 1e-9),
    ];
    parts.push(
      subheading("caution.test"),
      paragraph("caution.test_text"),
      table({
        caption: tell("caution.caption"),
        className: "scores",
        head: [
          tell("tokens.token"),
          tell("caution.received"),
          "",
          tell("caution.without"),
          tell("caution.lost"),
          "",
        ],
        rows: sentence.src.tokens.map((text, s) => [
          token(text, 20),
          number(received[s], 3), bar(received[s] / mostReceived),
          lost[s] === null ? "\u2013" : number(without[s], 2),
          lost[s] === null ? "\u2013" : number(lost[s], 2),
          lost[s] === null ? "" : bar(Math.max(lost[s], 0) / mostLost, "second"),
        ]),
      }),
      note("caution.read", {
        received: token(sentence.src.tokens[argmax(received)]),
        lost: token(sentence.src.tokens[argmax(lost.map((x) => x ?? -Infinity))]),
      }));
  }
  return parts;
};
