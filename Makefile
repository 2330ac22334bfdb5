# Every job a person runs. DATA= any data, ARGS= any option, GPUS=n the same program on n GPUs, CKPT= a run or a file.
# The first job sets up .venv by itself, from the versions pinned in constraints.txt.

PYTHON ?= python3
READY := .venv/.installed
RUN = $(if $(GPUS),.venv/bin/torchrun --standalone --nproc-per-node=$(GPUS) -m,.venv/bin/python -m)
# --option 'value', as it was given: neither make nor the shell takes anything in it for its own.
quote = '$(subst ','\'',$(1))'
option = $(if $(value $(2)),$(1) $(call quote,$(value $(2))))
data = $(call option,--data,DATA)
real = $(call option,--real,REAL)
ckpt = $(call option,--ckpt,CKPT)
in = $(call option,--in,IN)
out = $(call option,--out,OUT)
unexport DATA REAL CKPT IN OUT MASK HINTS

.DEFAULT_GOAL := help
.PHONY: help setup train-inpainting train-colorization train-superresolution train-splitbrain train-splitbrain-hha train-synthetic train-simclr train-moco train-byol train-cpc train-rotation train-jigsaw train-context train-deepcluster train-sela train-cliquecnn train-frame-order train-odd-one-out train-supervised eval-inpainting eval-superresolution eval-domains eval-classification eval-segmentation eval-geometry eval-detection transfer export mend colorize upscale surfaces scenes tensorboard bench docs test check format clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/\1\t\2/' | awk -F'\t' '{printf "make %-21s %s\n", $$1, $$2}'

setup: $(READY)  ## create .venv and install; every other job does it by itself when needed

$(READY): pyproject.toml constraints.txt
	@echo "setting up .venv (once; a few minutes) ..."
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "error: $(PYTHON) is older than 3.10: name a newer one with PYTHON=python3.11" >&2; exit 2; }
	@$(PYTHON) -m venv .venv
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

train-inpainting: $(READY)  ## train the context encoder: DATA= folder or set (default: built-in scenes), ARGS="--preset small", GPUS=n
	@$(RUN) kintsugi.recon.inpainting $(data) $(ARGS)

train-colorization: $(READY)  ## train the colorizer (ARGS="--loss l2", "--hints", "--classes 100"): DATA= ARGS= GPUS= as above
	@$(RUN) kintsugi.recon.colorization $(data) $(ARGS)

train-superresolution: $(READY)  ## train SRResNet, then SRGAN (ARGS="--content-weights download"): DATA= ARGS= GPUS= as above
	@$(RUN) kintsugi.recon.superresolution $(data) $(ARGS)

train-splitbrain: $(READY)  ## train the split-brain autoencoder of Lab (ARGS="--loss l2"): DATA= ARGS= GPUS= as above
	@$(RUN) kintsugi.recon.splitbrain $(data) $(ARGS)

train-splitbrain-hha: $(READY)  ## the same of images with depth: DATA= folder with rgb/, depth/ and intrinsics.txt
	@$(RUN) kintsugi.recon.splitbrain_hha $(data) $(ARGS)

train-synthetic: $(READY)  ## learn depth, normals and contours of scenes, adapted to photos: REAL= folder, DATA= ARGS= GPUS=
	@$(RUN) kintsugi.recon.synthetic $(data) $(real) $(ARGS)

train-simclr: $(READY)  ## train SimCLR: DATA= ARGS= GPUS= as above
	@$(RUN) kintsugi.contrastive.simclr $(data) $(ARGS)

train-moco: $(READY)  ## train MoCo v2 (v1: ARGS="--version 1"): DATA= ARGS= GPUS=
	@$(RUN) kintsugi.contrastive.moco $(data) $(ARGS)

train-byol: $(READY)  ## train BYOL: DATA= ARGS= GPUS=
	@$(RUN) kintsugi.contrastive.byol $(data) $(ARGS)

train-cpc: $(READY)  ## train CPC: DATA= ARGS= GPUS=
	@$(RUN) kintsugi.contrastive.cpc $(data) $(ARGS)

train-rotation: $(READY)  ## train rotation, by how many quarters an image was turned: DATA= ARGS= GPUS=
	@$(RUN) kintsugi.pretext.rotation $(data) $(ARGS)

train-jigsaw: $(READY)  ## train jigsaw, in what order an image's tiles were (ARGS="--permutations 1000"): DATA= ARGS= GPUS=
	@$(RUN) kintsugi.pretext.jigsaw $(data) $(ARGS)

train-context: $(READY)  ## train context prediction, where one patch lies from another (ARGS="--color project"): DATA= ARGS= GPUS=
	@$(RUN) kintsugi.pretext.context $(data) $(ARGS)

train-deepcluster: $(READY)  ## train DeepCluster: DATA= ARGS= GPUS=
	@$(RUN) kintsugi.pretext.deepcluster $(data) $(ARGS)

train-sela: $(READY)  ## train SeLa: DATA= ARGS= GPUS=
	@$(RUN) kintsugi.pretext.sela $(data) $(ARGS)

train-cliquecnn: $(READY)  ## train CliqueCNN: DATA= ARGS= GPUS=
	@$(RUN) kintsugi.pretext.cliquecnn $(data) $(ARGS)

train-frame-order: $(READY)  ## train Shuffle and Learn on clips: DATA= folder of folders of frames, or of videos; ARGS= GPUS=
	@$(RUN) kintsugi.pretext.frame_order $(data) $(ARGS)

train-odd-one-out: $(READY)  ## train Odd-one-out on clips (ARGS="--encoding stack --length 4"): DATA= ARGS= GPUS= as above
	@$(RUN) kintsugi.pretext.odd_one_out $(data) $(ARGS)

train-supervised: $(READY)  ## the row to measure others against, from scratch on labels: DATA= folder with train/ and test/, or cifar10
	@$(RUN) kintsugi.eval.supervised $(data) $(ARGS)

eval-inpainting: $(READY)  ## quality of mended holes beside classical methods: CKPT= DATA=
	@.venv/bin/python -m kintsugi.eval.hole_quality $(ckpt) $(data) $(ARGS)

eval-superresolution: $(READY)  ## PSNR and SSIM of a folder's images beside bicubic, as on Set5: CKPT= DATA=
	@.venv/bin/python -m kintsugi.eval.upscaling_quality $(ckpt) $(data) $(ARGS)

eval-domains: $(READY)  ## synthetic to real with and without its discriminator, three seeds each: REAL= DATA= ARGS=
	@.venv/bin/python -m kintsugi.eval.domains $(data) $(real) $(ARGS)

eval-classification: $(READY)  ## move a checkpoint's features to classification: DATA= folder with train/ and test/, or cifar10; CKPT=
	@.venv/bin/python -m kintsugi.eval.classification $(ckpt) $(data) $(ARGS)

eval-segmentation: $(READY)  ## move a checkpoint's features to segmentation, against random init: CKPT= DATA=
	@.venv/bin/python -m kintsugi.eval.segmentation $(ckpt) $(data) $(ARGS)

eval-geometry: $(READY)  ## move a checkpoint's features to depth and normals: DATA= folder with rgb/, depth/, intrinsics.txt; CKPT=
	@.venv/bin/python -m kintsugi.eval.geometry $(ckpt) $(data) $(ARGS)

eval-detection: $(READY)  ## move a checkpoint's features to Faster R-CNN: DATA= voc2007, a folder like it, scenes; CKPT=
	@.venv/bin/python -m kintsugi.eval.detection $(ckpt) $(data) $(ARGS)

transfer: $(READY)  ## every method under every task, one table: CKPT="a b" (default: the latest runs), ARGS="--classification ..."
	@.venv/bin/python -m kintsugi.eval.transfer $(if $(value CKPT),--ckpts $(foreach one,$(value CKPT),$(call quote,$(one)))) $(ARGS)

export: $(READY)  ## an encoder for other people's tools, safetensors and ONNX: CKPT= OUT=
	@.venv/bin/python -m kintsugi.eval.export $(ckpt) $(out) $(ARGS)

mend: $(READY)  ## mend a photo or a folder: IN= MASK= (white = hole) OUT= CKPT=
	@.venv/bin/python -m kintsugi.apps.mend $(in) $(call option,--mask,MASK) $(out) $(ckpt) $(ARGS)

colorize: $(READY)  ## colorize a gray photo or a folder: IN= OUT= CKPT= HINTS=
	@.venv/bin/python -m kintsugi.apps.colorize $(in) $(out) $(call option,--hints,HINTS) $(ckpt) $(ARGS)

upscale: $(READY)  ## enlarge a photo or a folder four times: IN= OUT= CKPT=
	@.venv/bin/python -m kintsugi.apps.upscale $(in) $(out) $(ckpt) $(ARGS)

surfaces: $(READY)  ## depth, normals and contours of a photo or a folder, by train-synthetic: IN= OUT= CKPT=
	@.venv/bin/python -m kintsugi.apps.surfaces $(in) $(out) $(ckpt) $(ARGS)

scenes: $(READY)  ## a contact sheet of the built-in scenes: OUT=scenes.png
	@.venv/bin/python -m kintsugi.apps.scenes $(out) $(ARGS)

tensorboard: $(READY)  ## look at the runs, at http://127.0.0.1:6006
	@.venv/bin/tensorboard --logdir runs --host 127.0.0.1 --port 6006 $(ARGS)

bench: .venv/.bench  ## speed beside lightly, stable-pretraining and torchvision, and beside the least it can cost: DATA= ARGS=
	@.venv/bin/python -m bench.loaders $(data)
	@.venv/bin/python -m bench.steps $(ARGS)
	@.venv/bin/python -m bench.growth $(ARGS)

.venv/.bench: $(READY)
	@echo "installing the peers to measure beside (once) ..."
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[bench]'
	@touch $@

docs: .venv/.docs  ## build the documentation, docs/_build/html/index.html
	@.venv/bin/python -m bench.tables
	@.venv/bin/python -m sphinx -q -W --keep-going -b html docs docs/_build/html $(ARGS)

.venv/.docs: $(READY)
	@echo "installing Sphinx (once) ..."
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	@touch $@

test: $(READY)  ## all tests but the slow ones (ARGS="-m slow" for those)
	@.venv/bin/python -m pytest -n 2 --dist worksteal -q $(if $(ARGS),$(ARGS),-m "not slow and not gpu")

check: $(READY)  ## ruff and mypy
	@.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy

format: $(READY)  ## put the code into shape
	@.venv/bin/ruff check --fix . && .venv/bin/ruff format .

clean:  ## remove .venv and caches; runs stay
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache *.egg-info
