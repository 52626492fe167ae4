// From the decoder's last vector to the next word; and the sentences that lost.

parts.output = function drawOutput(sentence) {
  const { tgt, steps } = sentence;
  const chosen = state.output;
  chosen.step = clamp(chosen.step, 0, steps.length - 1);
  const worked = h("div", { class: "worked" });
  const vocabulary = record.model.tgt_vocab_size;
  function update() {
    const step = steps[chosen.step];
    const total = Math.exp(step.logsumexp);
    const best = step.top[0];
    const written = step.top.findIndex((item) => item.id === tgt.ids[chosen.step]);
    worked.replaceChildren(
      h("p", {}, say(chosen.step ? "output.after" : "output.first", {
        before: h(
          "bdi",
          { class: "token" },
          clip(visible(wordText(tgt.tokens.slice(0, chosen.step))), 80),
        ),
      })),
      table({
        caption: tell("output.top", { step: String(chosen.step + 1) }),
        className: "scores",
        head: [
          tell("tokens.token"),
          tell("output.logit"),
          "exp(logit)",
          tell("output.probability"),
          "",
        ],
        rows: step.top.map((item) => h("tr", {
          class: item.id === tgt.ids[chosen.step] ? "current" : null,
        },
          h("th", { scope: "row" }, token(item.token, 20)),
          h("td", {}, number(item.logit, 3)),
          h("td", {}, wide(Math.exp(item.logit))),
          h("td", { class: "weight" }, number(item.prob, 4)),
          h("td", { class: "bar-cell" }, bar(item.prob)))),
        foot: [h("tr", {}, h(
          "th",
          { scope: "row", colspan: 2 },
          tell("output.all", { count: vocabulary.toLocaleString("en-US") }),
        ),
          h("td", {}, wide(total)), h("td", {}, number(1, 4)), h("td"))],
      }),
      formula(mi("p"), mo("("), math(
        "mtext",
        clip(visible(unmarked(best.token)), 20),
      ), mo(")"), mo("="),
        frac(
          sup(mi("e"), mv(best.logit, 3)),
          mn(formatWide(total)),
        ), mo("="), mv(best.prob, 4)),
      written === 0 ? "" : note(
        written > 0 ? "output.not_best" : "output.not_in_top",
        {
          token: token(tgt.tokens[chosen.step]),
          prob: percent(step.prob),
          rank: String(written + 1),
        },
      ),
    );
  }
  const words = choice({
    legend: tell("output.step"), name: "step", style: "chips", selected: chosen.step,
    options: tgt.tokens.map((text) => token(text, 16)),
    onchange: (step) => { chosen.step = step; update(); },
  });
  update();
  return [
    words.element,
    worked,
    details(tell("output.every"), () => table({
      caption: tell("output.every"),
      className: "compact",
      head: [tell("output.written"), ...range(5).map((i) => String(i + 1))],
      rows: steps.map((step, t) => [token(tgt.tokens[t], 16), ...step.top.map((item) =>
        h("span", { class: "option" }, token(item.token, 14), " ", percent(item.prob)))]),
    })),
  ];
};

parts.beam = function drawBeam(sentence) {
  const { candidates } = sentence;
  if (sentence.forced) return [note("beam.forced")];
  if (candidates.length < 2) return [note("beam.alone")];
  const winner = candidates[0].tokens;
  const parting = (tokens) => tokens.findIndex((text, i) => text !== winner[i]);
  const worst = Math.min(...candidates.map((item) => item.score));
  const line = ({ tokens, text }, rank) => {
    const at = rank === 0 ? -1 : parting(tokens);
    if (at < 0) return h("span", { class: "sentence", dir: "auto" }, visible(text));
    const rest = tokens.slice(at);
    // what the two sentences have in common again at their ends is not a difference
    let common = 0;
    while (
      common < rest.length - 1 &&
      rest.at(-1 - common) === winner.at(-1 - common) &&
      winner.length - common > at + 1
    ) common += 1;
    const show = (pieces) => visible(
      pieces.filter((piece) => piece !== "</s>").join("").replaceAll(WORD_MARK, " "),
    );
    return h(
      "span",
      { class: "sentence", dir: "auto" },
      show(tokens.slice(0, at)).trimStart(),
      h("mark", {}, show(rest.slice(0, rest.length - common))),
      show(common ? rest.slice(-common) : []),
    );
  };
  return [
    paragraph(
      "beam.text",
      {
        beam: String(record.search.beam_size),
        penalty: String(record.search.length_penalty),
        offset: String(record.search.length_offset),
        divisor: String(record.search.length_offset + 1),
      },
    ),
    table({
      caption: tell("beam.caption"),
      className: "beam",
      head: [
        "beam.rank",
        "beam.sentence",
        "beam.parts",
        "beam.log_prob",
        "beam.tokens",
        "beam.score",
      ].map((key) => tell(key)),
      rows: candidates.map((item, rank) => h("tr", { class: rank ? null : "current" },
        h("th", { scope: "row" }, String(rank + 1)),
        h("td", {}, line(item, rank)),
        h(
          "td",
          {},
          rank && parting(item.tokens) >= 0 ? say(
            "beam.at",
            {
              place: String(parting(item.tokens) + 1),
              token: token(item.tokens[parting(item.tokens)], 14),
            },
          ) : "\u2013",
        ),
        h("td", {}, number(item.log_prob, 3)),
        h("td", {}, String(item.tokens.length)),
        h("td", {}, number(item.score, 3)))),
    }),
    note("beam.note", { worst: number(worst, 3) }),
  ];
};
