"""An exported model behind a server: Python's own, in place of whichever you run.

    litseq export --ckpt CKPT --to ctranslate2 --quantization int8 -o ct2
    python examples/serve.py ct2 8000
    curl --data-binary "A man in a red hat." http://127.0.0.1:8000

A request holds a sentence a line, its answer as many translations. The engine is made once and
serves all threads; any other server needs the same two lines.
"""

import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch

from litseq.engines import load_exported


def handler(translator, options):
    """Makes the class that answers requests."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            size = int(self.headers.get("Content-Length", 0))
            texts = self.rfile.read(size).decode("utf-8").removesuffix("\n").split("\n")
            found = translator.translate(
                texts, options, max_tokens=4096, max_src_len=256, device=torch.device("cpu")
            )
            answer = "".join(f"{translation.text}\n" for translation in found).encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; charset=utf-8")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

    return Handler


def main(folder, port):
    """Serves on this machine alone until it is stopped."""
    translator, options = load_exported(Path(folder))
    server = ThreadingHTTPServer(("127.0.0.1", int(port)), handler(translator, options))
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
