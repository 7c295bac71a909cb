"""The page `darkroom ui`: pictures from any Darkroom server, in a browser. Needs the extra `ui`.

`settings` and `problems` translate between the page's fields and requests, `recipes` between recipes and fields, `runs`
follows jobs, `view` draws them as HTML, `offer` knows what a server offers. These need no Gradio, and are all that
speaks of Darkroom. `form` and `page` lay out the components, `actions` is what they do, `app` serves it all.
"""
