"""CliqueCNN: predict to which clique of similar images an image belongs (Bautista et al. 2016, arXiv:1608.08792).

Similarities between images are reliable only for very near and very far ones. Therefore images are collected into
compact cliques, whose members are all similar to one another, and cliques into groups of mutually distant cliques. Each
training step takes one group and classifies its cliques; cliques that are neither near nor far are in different groups.
Similarities come from whitened HOG at first, and later from the network's own features (the paper's iterations).

A clique grows from a random exemplar by complete linkage: it repeatedly adds the image, among the exemplar's nearest
neighbors, whose least similarity to the members is greatest. A group repeatedly adds the clique whose greatest
similarity to the cliques in the group is least.

Deviations: the paper finds groups by a relaxed quadratic program over all cliques, which weighs distances against
coverage; here groups are found greedily, and each clique is in exactly one group, so that all are used equally often. A
ResNet and one linear layer, of which each group uses its own rows, instead of AlexNet.

Each step chooses its images itself and ignores the loader's batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from skimage import feature
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear, normalize

from kintsugi.data.loader import Indexed
from kintsugi.pretext.clusters import ClustersConfig, ClustersMethod, reset_classifier, whitened, whitening
from kintsugi.rng import generator
from kintsugi.train.command import run_method
from kintsugi.train.config import within
from kintsugi.train.dist import World
from kintsugi.train.method import Batch
from kintsugi.upload import upload

_CLIQUES, _GROUPS, _CLASSIFIER, _ORDER, _PICKS = 3, 4, 5, 6, 7  # last element of the random generators' keys


@dataclass(frozen=True, kw_only=True)
class CliqueCNNConfig(ClustersConfig):
    cliques: int = 512
    """Number of cliques, a multiple of --group. Use few in short runs: a group, and its rows of the classifier, are
    trained only once in cliques/group steps."""
    members: int = 8
    """Number of images in a clique."""
    group: int = 32
    """Number of mutually distant cliques that are classified in a step; --batch must be a multiple of it."""
    rounds: int = 3
    """How many times cliques are found in the whole run: first from HOG, then from the network's features."""
    components: int = 128
    """Dimensions that PCA keeps of HOG and of features, at most, before they are whitened and compared."""

    def __post_init__(self) -> None:
        super().__post_init__()
        within(self, cliques=2, members=2, group=2, rounds=1, components=1)
        if self.cliques % self.group:
            raise ValueError(f"--cliques {self.cliques}: use a multiple of --group {self.group}")
        if self.batch % self.group or self.batch > self.group * self.members:
            raise ValueError(
                f"--batch {self.batch}: use a multiple of --group {self.group}, at most {self.members} times it, the "
                "number of images in a clique"
            )
        if self.size < 32:
            raise ValueError(f"--size {self.size}: HOG needs at least 32 px")


def demo() -> CliqueCNNConfig:
    """Minutes on two CPU cores, on the built-in scenes.

    Cliques come from HOG alone, because a second round would reset the classifier. The rooms of the scenes resemble
    each other only in few respects, mainly in their layout: hence few components, large cliques and large crops.
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
    """The paper's AlexNet, with many cliques, on ImageNet."""
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
    """Histograms of oriented gradients of the gray images, with 8x8 cells, 9 orientations and blocks of 2x2 cells:
    (n,3,S,S) in [0,1] -> (n,1764), on the images' device."""
    cell = image.shape[-1] // 8
    gray = image.mean(1)[:, : 8 * cell, : 8 * cell].cpu().numpy()
    found = [
        feature.hog(picture, orientations=9, pixels_per_cell=(cell, cell), cells_per_block=(2, 2)) for picture in gray
    ]
    return torch.stack([torch.from_numpy(row) for row in found]).to(image)


def find_cliques(points: Tensor, cliques: int, size: int, random: torch.Generator) -> Tensor:
    """Finds C = ``cliques`` cliques of m = ``size`` images each, given the images' unit vectors (N,d).

    Returns the images' numbers, int64 (C,m). Each clique grows from a random exemplar, its first member, by complete
    linkage among the exemplar's 3 m nearest neighbors. A clique holds no image twice.
    """
    exemplars = torch.randperm(len(points), generator=random)[:cliques].to(points.device)
    return torch.cat([_grown(points, chunk, size) for chunk in exemplars.split(512)])


def _grown(points: Tensor, exemplars: Tensor, size: int) -> Tensor:
    """``find_cliques`` for given exemplars, numbers of images (c,) -> (c,m)."""
    similarity = points[exemplars] @ points.T  # (c,N)
    row = torch.arange(len(exemplars), device=points.device)
    similarity[row, exemplars] = torch.inf  # so that the exemplar comes first even if there are copies of it
    near = similarity.topk(min(3 * size, len(points)), dim=1).indices  # (c,3m)
    inner = points[near] @ points[near].mT  # (c,3m,3m)
    picked = [torch.zeros_like(row)]
    least = inner[:, 0].clone()  # least similarity to the members so far, (c,3m)
    least[:, 0] = -torch.inf
    for _ in range(size - 1):
        best = least.argmax(1)
        least = torch.minimum(least, inner[row, best])
        least[row, best] = -torch.inf
        picked.append(best)
    return near.gather(1, torch.stack(picked, 1))


def find_groups(centers: Tensor, size: int, random: torch.Generator) -> Tensor:
    """Groups of r = ``size`` mutually distant cliques, int64 (C/r,r), given the cliques' centers, unit vectors (C,d).

    Each clique is in exactly one group. A group starts with a random remaining clique and repeatedly adds the one whose
    greatest similarity to the cliques in the group is least.
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
    """Scalars to log about cliques. points: unit vectors (N,d) of all images. members: numbers of the m images in each
    of r cliques in each of G groups, (G,r,m). truth: labels (N,).

    within: mean cosine of two members of a clique; between: mean cosine of the centers of two cliques in a group;
    covered: fraction of all images that are in a clique; same_label, where the data has labels: fraction of members
    with the label of their exemplar.
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
    """An encoder, and a linear layer with a row for each clique."""

    name = "cliquecnn"

    def __init__(self, config: CliqueCNNConfig, world: World) -> None:
        super().__init__(config, world)
        self.classifier = nn.Linear(self.width, config.cliques)  # the rows of a group are adjacent
        self.add_optimizer(self.classifier)
        self.members = torch.empty(0, dtype=torch.int64)
        """Numbers of the images in each group's cliques, (G,r,m), on the CPU, where images are read."""
        self.clique_steps = {config.steps * number // config.rounds for number in range(config.rounds)}

    def on_train_data(self, data: Indexed) -> None:
        super().on_train_data(data)
        least = max(self.config.cliques, self.config.members)
        if len(data) < least:
            raise ValueError(
                f"--cliques {self.config.cliques} with --members {self.config.members}: there are only "
                f"{len(data)} images; {least} are needed"
            )

    def set_extra_state(self, state: dict[str, Tensor]) -> None:
        super().set_extra_state(state)
        self.members = self.clusters["members"].cpu()

    def update(self, batch: Batch, step: int) -> dict[str, Tensor]:
        scalars = self.find(step) if step in self.clique_steps else {}
        group, indices, clique = self.choose(step)
        mine = self.world.part(len(indices))
        read = self.data.batch(indices[mine])
        *values, clique = upload(self.world.device, *read.values(), clique[mine])
        image = self.view(dict(zip(read, values, strict=True)), step)
        rows = slice(group * self.config.group, (group + 1) * self.config.group)
        self.encoder.train()
        with self.world.autocast():
            features = self.encoder.vectors(image)
            logits = linear(features, self.classifier.weight[rows], self.classifier.bias[rows])  # (n,r)
        loss = cross_entropy(logits.float(), clique)
        self.world.backward(loss, self.optimizers["both"])
        scalars |= {"loss/cliques": loss.detach(), "train/accuracy": (logits.argmax(1) == clique).float().mean()}
        return scalars | self.take_step("both", step)

    def choose(self, step: int) -> tuple[int, Tensor, Tensor]:
        """Chooses a step's images: the group's number, the images' numbers (B,), and their cliques in the group (B,).

        B is the global batch. All groups are used in a random order, then again in another one. Each clique contributes
        equally many images, drawn without repetition.
        """
        config, members = self.config, self.members
        cycle, place = divmod(step, len(members))
        order = torch.randperm(len(members), generator=generator(config.seed, cycle, _ORDER))
        group = int(order[place])
        each = config.batch // config.group
        draws = torch.rand(config.group, config.members, generator=generator(config.seed, step, _PICKS))
        picks = members[group].gather(1, draws.argsort(1)[:, :each])  # (r,each)
        # Ordered by members first, so that each rank's share has all cliques.
        return group, picks.T.flatten(), torch.arange(config.group).repeat(each)

    @torch.no_grad()
    def find(self, step: int) -> dict[str, Tensor]:
        """Finds cliques and groups among all training images, and resets the classifier; returns scalars to log."""
        config = self.config
        self.take_snapshot()
        vectors, truth = self.features_of_all(self.snapshot_features if step else hog)  # (N,D)
        mean, matrix = whitening(vectors, config.components)
        points = whitened(vectors, mean, matrix)  # (N,d)
        cliques = self.from_main(
            find_cliques(points, config.cliques, config.members, generator(config.seed, step, _CLIQUES))
        )
        centers = normalize(points[cliques].mean(1), dim=1)  # (C,d)
        groups = find_groups(centers, config.group, generator(config.seed, step, _GROUPS))
        groups = self.from_main(groups.to(cliques.device))
        self.clusters = {
            "members": cliques[groups],
            "centers": centers[groups],
            "mean": mean,
            "matrix": matrix,
            "by_hog": torch.tensor(step == 0),
        }
        self.members = self.clusters["members"].cpu()
        reset_classifier(self.classifier, self.optimizers["both"], generator(config.seed, step, _CLASSIFIER))
        return clique_scalars(points, self.clusters["members"], truth)

    def assign(self, image: Tensor) -> Tensor:
        """The nearest clique of each group, (G,n), by the features from which the cliques were found."""
        found = self.clusters
        vectors = hog(image) if found["by_hog"] else self.snapshot_features(image)
        points = whitened(vectors, found["mean"], found["matrix"])  # (n,d)
        return (points @ found["centers"].mT).argmax(2)  # (n,d) @ (G,d,r)

    @torch.no_grad()
    def predict(self, image: Tensor) -> Tensor:
        logits = self.classifier(self.features(image)).unflatten(1, (-1, self.config.group))  # (n,G,r)
        return logits.argmax(2).T

    def images_to_show(self) -> Tensor:
        """The mutually distant cliques of the first group."""
        return self.members[0, :10, :10]


def main(argv: Sequence[str] | None = None) -> None:
    run_method(CliqueCNN, (demo, small, paper), argv)


if __name__ == "__main__":
    main()
