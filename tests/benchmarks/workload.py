"""The work that server and peer both do."""

from dataclasses import dataclass

SCHEDULERS = ("euler", "ddim", "dpmpp-2m", "euler-ancestral", "unipc", "pndm", "deis", "lms")


@dataclass(frozen=True)
class Order:
    """One picture to make."""

    seed: int
    scheduler: str = "euler"
    steps: int = 20
    guidance: float = 4.0
    prompt: str = "a large red circle on a blue background"


def uniform(count: int) -> list[Order]:
    """The same kind of picture again and again."""
    return [Order(seed) for seed in range(count)]


def mixed(count: int) -> list[Order]:
    """Schedulers, step counts (12 to 28, 20 in the mean) and guidance all differ."""
    return [
        Order(
            seed,
            scheduler=SCHEDULERS[seed % len(SCHEDULERS)],
            steps=12 + 4 * (seed * 7 % 5),
            guidance=3.0 + seed % 4,
            prompt=f"a {('large', 'small')[seed % 2]} {('red', 'green', 'pink')[seed % 3]} star on a black background",
        )
        for seed in range(count)
    ]


def share(orders: list[Order], clients: int) -> list[list[Order]]:
    """The orders of each client, who sends one after another."""
    return [orders[client::clients] for client in range(clients)]
