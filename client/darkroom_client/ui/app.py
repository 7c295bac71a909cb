"""Serves the page."""

import os
import signal
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent


# Gradio asks nothing of other hosts, keeps no list of what visitors did, and its files lie in the page's folder.
_ENVIRONMENT = {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_RUN_HISTORY": "False", "HF_HUB_OFFLINE": "1"}


def serve(
    address: str | None,
    options: Mapping[str, Any],
    host: str,
    port: int,
    ready: Callable[[str], object],
    *,
    login: tuple[str, str] | None = None,
    wildcards: Path | None = None,
) -> None:
    """Serves the page until the process is interrupted.

    :param address: of the Darkroom server; None: `AsyncClient`'s default.
    :param options: further keywords of `AsyncClient`.
    :param ready: called with the page's address once it can be opened.
    :param login: name and password that visitors are asked for; None: whoever opens the page may use it.
    :param wildcards: the folder of texts for `__NAME__` in prompts.
    :raises OSError: if nothing can listen there.
    """
    with tempfile.TemporaryDirectory(prefix="darkroom-ui-") as folder:
        os.environ |= _ENVIRONMENT | {"GRADIO_TEMP_DIR": folder}
        import gradio as gr

        from darkroom_client.ui.page import build
        from darkroom_client.ui.theme import theme

        pictures = Path(folder, "pictures")
        pictures.mkdir()
        blocks = build(address, options, pictures, wildcards)
        _, url, _ = blocks.queue(default_concurrency_limit=None).launch(
            server_name=host,
            server_port=port,
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            inbrowser=False,
            ssr_mode=False,
            enable_monitoring=False,
            footer_links=[],
            auth=login,
            theme=theme(gr),
            css_paths=[_HERE / "page.css"],
            head="".join(f"<script>{(_HERE / name).read_text()}</script>" for name in ("page.js", "brush.js")),
            max_file_size="64mb",
            allowed_paths=[str(pictures)],
        )
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the folder is removed then, too
        ready(url)
        try:
            threading.Event().wait()
        finally:
            blocks.close(verbose=False)
