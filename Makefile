.PHONY: help install demo test lint docs
.DEFAULT_GOAL := help

help:     ## what the targets do
	@sed -n 's/^\([a-z]*\): *## \(.*\)/make \1\t\2/p' Makefile | expand -t 15
install:  ## make .venv and install the suite into it
	@bash scripts/install.sh
demo:     ## train, plug in, evaluate and compare, in about a quarter of an hour
	@bash scripts/demo.sh
test:     ## the whole test suite
	@bash scripts/test.sh
lint:     ## style, types and the one-way rule between the packages
	@bash scripts/lint.sh
docs:     ## the documentation as a site, in build/site
	@bash scripts/docs.sh
