"""CliqueCNN: to which clique of similar images an exemplar belongs (Bautista et al. 2016, arXiv:1608.08792).

Distances between images are unreliable, but for the very near and the very far. So images are grouped into compact
cliques, all of whose members are similar to one another, and cliques into groups in which they are mutually distant;
each step is one group's task, to tell its cliques apart. What is neither near nor far comes into different groups.
Similarities are those of whitened HOG at first, and of the net's own features later (the paper's iterations).

A clique grows from a random exemplar by complete linkage: again and again it takes of the exemplar's nearest neighbors
the one whose least similarity to the members is the greatest. A group grows in the same way, by the clique whose
greatest similarity to those in the group is the least.

Deviations: the paper finds the groups by a relaxed quadratic program over all cliques, which weighs distances against
coverage; here they are found greedily, and each clique is in one group, so that all are used equally often. A ResNet
and one linear layer of which a group sees its own rows, instead of AlexNet.

A step's images are chosen here, not by the loader, whose own batch is left aside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from skimage import feature
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear, normalize

from kintsugi.data.loader import Indexed
from kintsugi.pretext.clusters import ClustersConfig, ClustersMethod, draw_anew, whitened, whitening
from kintsugi.rng import generator
from kintsugi.train import optim
from kintsugi.train.command import run_method
from kintsugi.train.config import within
from kintsugi.train.dist import World
from kintsugi.train.method import Batch

_CLIQUES, _GROUPS, _CLASSIFIER, _ORDER, _PICKS = 3, 4, 5, 6, 7


@dataclass(frozen=True, kw_only=True)
class CliqueCNNConfig(ClustersConfig):
    cliques: int = 512
    """How many there are; a multiple of --group. Few where steps are few: each group is met every cliques/group steps,
    and a group's part of the classifier learns at its own steps alone."""
    members: int = 8
    """Images of a clique."""
    group: int = 32
    """Mutually distant cliques that are told apart in a step; --batch is a multiple of it."""
    rounds: int = 3
    """How often cliques are found, over the whole run: by HOG, then by the net's features."""
    components: int = 128
    """To how many dimensions PCA reduces HOG and features, at most, before they are whitened and compared."""

    def __post_init__(self) -> None:
        super().__post_init__()
        within(self, cliques=2, members=2, group=2, rounds=1, components=1)
        if self.cliques % self.group:
            raise ValueError(f"--cliques {self.cliques}: use a multiple of --group {self.group}")
        if self.batch % self.group or self.batch > self.group * self.members:
            raise ValueError(
                f"--batch {self.batch}: use a multiple of --group {self.group}, at most {self.members} times it, the "
                "members of a clique"
            )
        if self.size < 32:
            raise ValueError(f"--size {self.size}: HOG wants at least 32 px")


def demo() -> CliqueCNNConfig:
    """Minutes on two CPU cores, built-in scenes. Cliques by HOG alone: a second round would start anew. Rooms are alike
    in few directions only and by where things are in them: so few components, large cliques, and crops that keep most.
    """
    return CliqueCNNConfig(
        preset="demo",
        scenes=2048,
        short_side=80,
        steps=360,
        batch=64,
        cliques=32,
        members=32,
        group=8,
        rounds=1,
        smallest_crop=0.6,
        strength=1.0,
        components=16,
        optimizer="adam",
        lr=1e-3,
        show_every=120,
        eval_every=120,
        save_every=120,
    )


def small() -> CliqueCNNConfig:
    """One GPU, tens of minutes."""
    return CliqueCNNConfig(
        preset="small",
        size=64,
        batch=256,
        steps=20_000,
        cliques=4096,
        group=64,
        strength=1.0,
        optimizer="adam",
        lr=1e-3,
        scenes=50_000,
        show_every=1_000,
        eval_every=1_000,
        save_every=2_000,
    )


def paper() -> CliqueCNNConfig:
    """The paper's AlexNet on many cliques, here of ImageNet."""
    return CliqueCNNConfig(
        preset="paper",
        data="imagenet:imagenet",
        encoder="alexnet",
        size=224,
        short_side=256,
        batch=256,
        steps=400_000,
        cliques=16_384,
        group=64,
        rounds=4,
        cache_gb=400,
        show_every=5_000,
        eval_every=5_000,
        save_every=5_000,
    )


# --- cliques and groups ---------------------------------------------------------------------------------------


def hog(image: Tensor) -> Tensor:
    """Histograms of oriented gradients of the gray image, 8x8 cells, 9 orientations, blocks of 2x2 cells:
    (n,3,S,S) in [0,1] -> (n,1764), on its device."""
    cell = image.shape[-1] // 8
    gray = image.mean(1)[:, : 8 * cell, : 8 * cell].cpu().numpy()
    found = [
        feature.hog(picture, orientations=9, pixels_per_cell=(cell, cell), cells_per_block=(2, 2)) for picture in gray
    ]
    return torch.stack([torch.from_numpy(row) for row in found]).to(image)


def find_cliques(points: Tensor, cliques: int, size: int, random: torch.Generator) -> Tensor:
    """Images (C,m) of ``cliques`` cliques of ``size``, grown from as many exemplars (the first ones) drawn of N unit
    vectors (N,d), by complete linkage among each one's 3 m nearest neighbors. A clique has no image twice."""
    exemplars = torch.randperm(len(points), generator=random)[:cliques].to(points.device)
    return torch.cat([_grown(points, part, size) for part in exemplars.split(512)])


def _grown(points: Tensor, exemplars: Tensor, size: int) -> Tensor:
    similarity = points[exemplars] @ points.T  # (c,N)
    row = torch.arange(len(exemplars), device=points.device)
    similarity[row, exemplars] = torch.inf  # so that an exemplar comes first, copies of it or not
    near = similarity.topk(min(3 * size, len(points)), dim=1).indices  # (c,3m)
    inner = points[near] @ points[near].mT  # (c,3m,3m)
    picked = [torch.zeros_like(row)]
    least = inner[:, 0].clone()  # of the similarities to the members so far, (c,3m)
    least[:, 0] = -torch.inf
    for _ in range(size - 1):
        best = least.argmax(1)
        least = torch.minimum(least, inner[row, best])
        least[row, best] = -torch.inf
        picked.append(best)
    return near.gather(1, torch.stack(picked, 1))


def find_groups(centers: Tensor, size: int, random: torch.Generator) -> Tensor:
    """Groups (C/r,r) of ``size`` mutually distant cliques, given by unit vectors (C,d); each clique is in one.

    A group begins with a clique drawn among those that are left, and takes again and again the one whose greatest
    similarity to those in it is the least.
    """
    similarity = (centers @ centers.T).cpu()
    left = torch.ones(len(centers), dtype=torch.bool)
    order = torch.randperm(len(centers), generator=random)
    groups = []
    while left.any():
        picked = order[left[order]][:1]
        greatest = similarity[picked[0]].clone()
        left[picked] = False
        for _ in range(size - 1):
            farthest = torch.where(left, greatest, torch.inf).argmin()
            left[farthest] = False
            greatest = torch.maximum(greatest, similarity[farthest])
            picked = torch.cat([picked, farthest[None]])
        groups.append(picked)
    return torch.stack(groups)


def clique_scalars(points: Tensor, members: Tensor, truth: Tensor | None) -> dict[str, Tensor]:
    """What to log of groups of cliques (G,r,m) of unit vectors (N,d); cosines.

    within: of two members of a clique; between: of the centers of two cliques of a group; covered: the part of all
    images that is in any clique; same_label, where the data has labels: how often a member has its exemplar's.
    """
    inside = points[members]  # (G,r,m,d)
    centers = normalize(inside.mean(2), dim=2)
    size, group = members.shape[2], members.shape[1]
    cosines, distant = inside @ inside.mT, centers @ centers.mT  # (G,r,m,m), (G,r,r)
    scalars = {
        "cliques/within": ((cosines.sum((2, 3)) - size) / (size * (size - 1))).mean(),
        "cliques/between": ((distant.sum((1, 2)) - group) / (group * (group - 1))).mean(),
        "cliques/covered": (torch.bincount(members.flatten(), minlength=len(points)) > 0).float().mean(),
    }
    if truth is not None:
        labels = truth[members]
        scalars["cliques/same_label"] = (labels[..., 1:] == labels[..., :1]).float().mean()
    return scalars


# --- the method -----------------------------------------------------------------------------------------------


class CliqueCNN(ClustersMethod[CliqueCNNConfig]):
    name = "cliquecnn"

    def __init__(self, config: CliqueCNNConfig, world: World) -> None:
        super().__init__(config, world)
        # The rows of a group's cliques stand together.
        self.classifier = nn.Linear(self.encoder.channels[max(self.encoder.channels)], config.cliques)
        both = nn.ModuleList([self.encoder, self.classifier])
        self.optimizers = {"both": optim.make_optimizer(config.optimizer, both, self.rate, config.weight_decay)}
        self.members = torch.empty(0, dtype=torch.int64)  # (G,r,m), on the CPU, where images are read
        self.when = {config.steps * number // config.rounds for number in range(config.rounds)}

    def on_train_data(self, data: Indexed) -> None:
        super().on_train_data(data)
        least = max(self.config.cliques, self.config.members)
        if len(data) < least:
            raise ValueError(
                f"--cliques {self.config.cliques} of {self.config.members} --members: there are only "
                f"{len(data)} images; {least} are needed"
            )

    def set_extra_state(self, state: dict[str, Tensor]) -> None:
        super().set_extra_state(state)
        self.members = self.clusters["members"].cpu()

    def update(self, batch: Batch, step: int) -> dict[str, Tensor]:
        scalars = self.find(step) if step in self.when else {}
        group, indices, clique = self.choose(step)
        mine = self.world.part(len(indices))
        chosen = {name: value.to(self.world.device) for name, value in self.data.batch(indices[mine]).items()}
        image, clique = self.view(chosen, step), clique[mine].to(self.world.device)
        rows = slice(group * self.config.group, (group + 1) * self.config.group)
        self.encoder.train()
        with self.world.autocast():
            features = self.encoder.vectors(image)
            logits = linear(features, self.classifier.weight[rows], self.classifier.bias[rows])  # (n,r)
        loss = cross_entropy(logits.float(), clique)
        loss.backward()
        scalars |= {"loss/cliques": loss.detach(), "train/accuracy": (logits.argmax(1) == clique).float().mean()}
        return scalars | {"grad_norm/both": optim.take_step(self.optimizers["both"], self.world)}

    def choose(self, step: int) -> tuple[int, Tensor, Tensor]:
        """A step's group; the images of the global batch (B,), as many of each clique; and their cliques (B,).

        The groups come in a new order each time all have been; the members of a clique are drawn without repetition.
        """
        config, members = self.config, self.members
        turn, place = divmod(step, len(members))
        order = torch.randperm(len(members), generator=generator(config.seed, turn, _ORDER))
        group = int(order[place])
        each = config.batch // config.group
        draws = torch.rand(config.group, config.members, generator=generator(config.seed, step, _PICKS))
        picks = members[group].gather(1, draws.argsort(1)[:, :each])  # (r,each)
        # By members first, so that each rank's part has all cliques.
        return group, picks.T.flatten(), torch.arange(config.group).repeat(each)

    @torch.no_grad()
    def find(self, step: int) -> dict[str, Tensor]:
        """Finds cliques and groups anew, and draws a fresh classifier; what to log of them."""
        config = self.config
        self.remember()
        vectors, truth = self.whole(self.represent_formerly if step else hog)  # (N,D)
        mean, matrix = whitening(vectors, config.components)
        points = whitened(vectors, mean, matrix)  # (N,d)
        cliques = self.agreed(
            find_cliques(points, config.cliques, config.members, generator(config.seed, step, _CLIQUES))
        )
        centers = normalize(points[cliques].mean(1), dim=1)  # (C,d)
        groups = find_groups(centers, config.group, generator(config.seed, step, _GROUPS))
        groups = self.agreed(groups.to(cliques.device))
        self.clusters = {
            "members": cliques[groups],
            "centers": centers[groups],
            "mean": mean,
            "matrix": matrix,
            "by_hog": torch.tensor(step == 0),
        }
        self.members = self.clusters["members"].cpu()
        draw_anew(self.classifier, self.optimizers["both"], generator(config.seed, step, _CLASSIFIER))
        return clique_scalars(points, self.clusters["members"], truth)

    def assign(self, image: Tensor) -> Tensor:
        """The nearest clique of each group, (G,n), by what the cliques were found by."""
        found = self.clusters
        vectors = hog(image) if found["by_hog"] else self.represent_formerly(image)
        points = whitened(vectors, found["mean"], found["matrix"])  # (n,d)
        return (points @ found["centers"].mT).argmax(2)  # (n,d) @ (G,d,r)

    @torch.no_grad()
    def classify(self, image: Tensor) -> Tensor:
        logits = self.classifier(self.represent(image)).unflatten(1, (-1, self.config.group))  # (n,G,r)
        return logits.argmax(2).T

    def rows(self) -> Tensor:
        """The mutually distant cliques of a group."""
        return self.members[0, :10, :10]


def main(argv: Sequence[str] | None = None) -> None:
    run_method(CliqueCNN, (demo, small, paper), argv)


if __name__ == "__main__":
    main()
