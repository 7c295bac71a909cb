"""The embedded demo model as settings: what is served if no model is configured."""

from __future__ import annotations

from darkroom_server.config.settings import DEMO, AssetSettings, ModelSettings, Settings

LORAS = {"outline": "Shapes as coloured outlines.", "stripes": "Shapes in stripes."}


def with_demo(settings: Settings) -> Settings:
    """Settings without models, plus the embedded demo model, its ControlNet and its LoRAs."""
    from darkroom_demo import CONTROLNET_PATH, LORA_PATHS

    canny = AssetSettings(name="canny", path=CONTROLNET_PATH, preprocessor="canny", description="Shapes along edges.")
    loras = [AssetSettings(name=name, path=path, description=LORAS.get(name, "")) for name, path in LORA_PATHS.items()]
    return settings.model_copy(
        update={
            "models": [demo_model()],
            "controlnets": [*settings.controlnets, *_others([canny], settings.controlnets)],
            "loras": [*settings.loras, *_others(loras, settings.loras)],
        }
    )


def _others(own: list[AssetSettings], given: list[AssetSettings]) -> list[AssetSettings]:
    names = {each.name for each in given}
    return [each for each in own if each.name not in names]


def demo_model() -> ModelSettings:
    """The embedded model, served if no model is configured."""
    from darkroom_demo import MODEL_PATH

    return ModelSettings(
        name=DEMO,
        path=MODEL_PATH,
        description="Coloured shapes on a coloured background, 64x64: small, trained for demonstration.",
        default_num_inference_steps=25,
        default_guidance_scale=3.0,
        default_preview_mode="full-vae",
    )
