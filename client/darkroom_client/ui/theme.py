"""The colours of a darkroom: near black, and a safelight's red."""

from typing import Any


def theme(gr: Any) -> Any:
    """The theme, whose fonts come with Gradio, so that nothing is loaded from elsewhere.

    Its files of weight 600 have no letters.
    """
    red = gr.themes.Color(
        "#fff3ef",
        "#ffe2d9",
        "#ffc6b5",
        "#ffa086",
        "#ff7a58",
        "#ff5c38",
        "#ee4420",
        "#c63416",
        "#9c2b15",
        "#7a2515",
        "#431008",
    )
    ink = gr.themes.Color(
        "#faf9f8",
        "#f0eeec",
        "#dcd8d4",
        "#bdb7b1",
        "#968f88",
        "#736c66",
        "#544e49",
        "#3a3531",
        "#26221f",
        "#191614",
        "#100e0d",
    )
    font = gr.themes.LocalFont("IBM Plex Sans", weights=(400, 700))
    mono = gr.themes.LocalFont("IBM Plex Mono", weights=(400, 700))
    made = gr.themes.Base(
        primary_hue=red,
        secondary_hue=red,
        neutral_hue=ink,
        font=[font, "system-ui", "sans-serif"],
        font_mono=[mono, "ui-monospace", "monospace"],
        radius_size="md",
        spacing_size="sm",
        text_size="sm",
    ).set(
        body_background_fill_dark="*neutral_950",
        background_fill_primary_dark="*neutral_900",
        background_fill_secondary_dark="*neutral_900",
        block_background_fill_dark="*neutral_900",
        block_border_color_dark="*neutral_800",
        block_label_text_color_dark="*neutral_400",
        block_title_text_color_dark="*neutral_300",
        block_info_text_color_dark="*neutral_400",
        border_color_primary_dark="*neutral_800",
        input_background_fill_dark="*neutral_950",
        input_border_color_dark="*neutral_800",
        input_placeholder_color_dark="*neutral_400",
        button_primary_background_fill_dark="*primary_500",
        button_primary_background_fill_hover_dark="*primary_400",
        button_primary_text_color_dark="#1a0a05",
        slider_color_dark="*primary_500",
    )
    for name in [name for name in vars(made) if name.endswith("_dark")]:  # dark whatever the system prefers
        if getattr(made, name) is not None:
            setattr(made, name.removesuffix("_dark"), getattr(made, name))
    return made
