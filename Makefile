.PHONY: help install demo test test-long lint audit docs
.DEFAULT_GOAL := help

help:     ## list the targets
	@sed -n 's/^\([a-z-]*\): *## \(.*\)/make \1\t\2/p' Makefile | expand -t 15
install:  ## make .venv and install the suite into it, in a minute
	@bash scripts/install.sh
demo:     ## train, plug in, evaluate and compare, in 10 minutes on two cores
	@bash scripts/demo.sh
test:     ## the tests, in 8 minutes on two idle cores
	@bash scripts/test.sh
test-long: ## the slow tests, hours on two cores: trainings in several processes, killed and resumed; 5,000 inputs of each generator
	@bash scripts/test.sh -m slow --no-loadscope-reorder
lint:     ## style, types and the direction of imports between the packages
	@bash scripts/lint.sh
audit:    ## licenses and known vulnerabilities of all dependencies; queries OSV (network)
	@bash scripts/audit.sh
docs:     ## the documentation as a site, in build/site
	@bash scripts/docs.sh
