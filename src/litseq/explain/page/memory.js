// The one arrow that beginners miss: the encoder's output goes into every decoder layer.

parts.memory = function drawMemory(sentence) {
  const { memory } = sentence.detail;
  const [S, D] = memory.shape;
  const looks = memory.layers.filter((layer) => layer.digest !== null);
  const same = looks.filter((layer) => layer.digest === memory.digest);
  const names = (layers) => layers.map((layer) => layer.layer + 1).join(", ");
  const missing = memory.layers.filter((layer) => layer.digest === null);
  const other = looks.filter((layer) => layer.digest !== memory.digest);
  const verdicts = [];
  if (other.length > 0) verdicts.push(
    note("memory.other", { layers: names(other) }, { class: "note bad" }),
  );
  if (missing.length > 0) verdicts.push(
    note(
      "memory.missing",
      { layers: names(missing), count: String(missing.length) },
      { class: "note bad" },
    ),
  );
  if (same.length === memory.layers.length) {
    verdicts.push(
      note(
        same.length === 2 ? "memory.same_both" : "memory.same",
        { count: String(same.length), digest: h("code", {}, memory.digest) },
        { class: "note good" },
      ),
    );
  }
  const arrow = (layer) => svg("svg", {
    class: "arrow",
    viewBox: "0 0 60 24",
    preserveAspectRatio: "none",
    "aria-hidden": "true",
  },
    layer.digest === null ? null : [
      svg(
        "path",
        { d: "M0 12 H50", class: layer.digest === memory.digest ? "shaft" : "shaft odd" },
      ),
      svg(
        "path",
        { d: "M48 5 L60 12 L48 19 Z", class: layer.digest === memory.digest ? "tip" : "tip odd" },
      )]);
  const diagram = h("div", { class: "memory-diagram" },
    h("div", { class: "memory-box" },
      h("strong", {}, tell("memory.output")),
      h("span", {}, say("memory.shape", { S: String(S), D: String(D) })),
      h("code", { class: "digest" }, memory.digest),
      h("span", { class: "numbers" }, memory.first.flatMap((x) => [number(x, 3), "  "]), "\u2026")),
    h("ol", {
      class: "memory-layers",
    }, memory.layers.map((layer) => h("li", { class: layer.digest === null ? "blind" : null },
      arrow(layer),
      h("div", { class: "layer-box" },
        h("strong", {}, tell("memory.layer", { layer: String(layer.layer + 1) })),
        layer.digest === null ? h("span", {}, tell("memory.never")) : [
          h("span", {}, h("b", { class: "kv" }, tell("memory.kv")), " ", say(
            "memory.receives",
            { digest: h("code", { class: "digest" }, layer.digest) },
          ), " ",
            h(
              "span",
              { class: layer.digest === memory.digest ? "mark-good" : "mark-bad" },
              layer.digest === memory.digest
                ? `\u2713 ${tell("memory.equal")}`
                : `\u2717 ${tell("memory.different")}`,
            )),
          h(
            "span",
            {},
            h("b", { class: "q" }, "Q"),
            " ",
            say(
              "memory.asks",
              { digest: h("code", { class: "digest" }, layer.query_digest ?? "") },
            ),
          ),
        ])))));
  return [
    diagram,
    verdicts,
    note("memory.digest_text"),
  ];
};
