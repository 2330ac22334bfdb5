# Every job a person runs. DATA= any data, ARGS= any option, GPUS=n the same program on n GPUs, CKPT= a run or a file.
# NODES=m GPUS=n HEAD=host, on each of m machines: the same program on m times n GPUs. HEAD is the first machine.
# The programs and what they do are listed in kintsugi/catalog.py; a test compares that list with this file.
# The first job sets up .venv by itself, from the versions pinned in constraints.txt.

PYTHON ?= python3
READY := .venv/.installed
KINTSUGI = .venv/bin/python -m kintsugi
meeting = --nnodes=$(NODES) --rdzv-backend=c10d $(or $(call option,--rdzv-endpoint,HEAD),$(error NODES=$(NODES) needs \
	HEAD=, the name of the first machine))
TORCHRUN = .venv/bin/torchrun $(if $(NODES),$(meeting),--standalone) --nproc-per-node=$(or $(GPUS),1) -m kintsugi
RUN = $(if $(NODES)$(GPUS),$(TORCHRUN),$(KINTSUGI))
# --option 'value', exactly as given: neither make nor the shell interprets anything in it.
quote = '$(subst ','\'',$(1))'
option = $(if $(value $(2)),$(1) $(call quote,$(value $(2))))
data = $(call option,--data,DATA)
real = $(call option,--real,REAL)
teacher = $(call option,--teacher,TEACHER)
mask = $(call option,--mask,MASK)
hints = $(call option,--hints,HINTS)
ckpts = $(if $(value CKPT),--ckpts $(foreach one,$(value CKPT),$(call quote,$(one))))
ckpt = $(call option,--ckpt,CKPT)
in = $(call option,--in,IN)
out = $(call option,--out,OUT)
unexport DATA REAL TEACHER CKPT IN OUT MASK HINTS HEAD

TRAIN := $(addprefix train-,inpainting mender colorization superresolution splitbrain splitbrain-hha mae spark synthetic \
	cpc simclr moco byol dino lejepa distill rotation jigsaw context deepcluster sela cliquecnn frame-order odd-one-out supervised)
EVAL := $(addprefix eval-,inpainting colorization superresolution domains classification segmentation geometry detection)

.DEFAULT_GOAL := help
.PHONY: $(TRAIN) $(EVAL) transfer export mend colorize upscale surfaces studio scenes \
	help setup tensorboard bench gpu docs test check format dist clean

help:  ## this list
	@$(PYTHON) -I kintsugi/catalog.py
	@echo "Look, and work on the code:"
	@sed -nE 's/^([a-z-]+):.*## (.*)/\1\t\2/p' $(firstword $(MAKEFILE_LIST)) | awk -F'\t' '{printf "make %-21s %s\n", $$1, $$2}'

setup: $(READY)  ## create .venv and install; every other job does it by itself when needed

$(READY): pyproject.toml constraints.txt
	@echo "setting up .venv (once; a few minutes) ..."
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "error: $(PYTHON) is older than 3.10: name a newer one with PYTHON=python3.11" >&2; exit 2; }
	@$(PYTHON) -m venv .venv
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

$(TRAIN): train-%: $(READY)
	@$(RUN) train $* $(data) $(if $(filter synthetic,$*),$(real)) $(if $(filter distill,$*),$(teacher)) $(ARGS)

$(EVAL): eval-%: $(READY)
	@$(KINTSUGI) eval $* $(if $(filter domains,$*),$(real),$(ckpt)) $(data) $(ARGS)

transfer: $(READY)
	@$(KINTSUGI) transfer $(ckpts) $(ARGS)

export: $(READY)
	@$(KINTSUGI) export $(ckpt) $(out) $(ARGS)

mend: $(READY)
	@$(KINTSUGI) mend $(in) $(mask) $(out) $(ckpt) $(ARGS)

colorize: $(READY)
	@$(KINTSUGI) colorize $(in) $(hints) $(out) $(ckpt) $(ARGS)

upscale surfaces: $(READY)
	@$(KINTSUGI) $@ $(in) $(out) $(ckpt) $(ARGS)

studio: .venv/.studio
	@$(KINTSUGI) studio $(ckpt) $(ARGS)

.venv/.studio: $(READY)
	@echo "installing gradio (once) ..."
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[studio]'
	@touch $@

scenes: $(READY)
	@$(KINTSUGI) scenes $(out) $(ARGS)

tensorboard: $(READY)  ## show the runs, at http://127.0.0.1:6006
	@.venv/bin/tensorboard --logdir runs --host 127.0.0.1 --port 6006 $(ARGS)

bench: .venv/.bench  ## speed compared with lightly, stable-pretraining and torchvision, and with the least it can cost: DATA= ARGS=
	@.venv/bin/python -m bench.loaders $(data)
	@.venv/bin/python -m bench.steps $(ARGS)
	@.venv/bin/python -m bench.growth $(ARGS)

.venv/.bench: $(READY)
	@echo "installing the libraries to compare with (once) ..."
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[bench]'
	@touch $@

# On a machine without a network there is no .venv: python3 has PyTorch there, and .gpu/ (bench.gpu.pack) what it lacks.
gpu:  ## test and measure all on a GPU in 9 minutes, also without a network: PARTS="tests smoke rates cifar10 learn" ARGS=
	@$(or $(wildcard .venv/bin/python),$(PYTHON)) -m bench.gpu $(if $(PARTS),--parts $(PARTS)) $(ARGS)

docs: .venv/.docs  ## build the documentation, docs/_build/html/index.html
	@.venv/bin/python -m bench.tables
	@.venv/bin/python -m sphinx -q -W --keep-going -b html docs docs/_build/html $(ARGS)
	@echo "written: docs/_build/html/index.html"

.venv/.docs: $(READY)
	@echo "installing Sphinx (once) ..."
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	@touch $@

test: $(READY) .venv/.studio  ## all tests but the slow ones (ARGS="-m slow" for those)
	@.venv/bin/python -m pytest -n 2 --dist worksteal -q $(if $(ARGS),$(ARGS),-m "not slow and not gpu")

check: $(READY)  ## ruff, mypy, the layers of the imports, spelling and house style
	@.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy
	@.venv/bin/lint-imports --no-logo && .venv/bin/codespell && .venv/bin/python tests/house_style.py

format: $(READY)  ## format the code
	@.venv/bin/ruff check --fix . && .venv/bin/ruff format .

dist: $(READY)  ## build the wheel and the source archive into dist/
	@rm -rf build && .venv/bin/python -m build --no-isolation --outdir dist

clean:  ## remove .venv, caches and what was built; runs stay
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .import_linter_cache *.egg-info build dist docs/_build
