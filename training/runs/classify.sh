#!/bin/sh
# Trains and compares the plain classifier and ours. DIR has the labelled text: training/runs/classify.sh DIR
set -eu
cd "$(dirname "$0")/../.."
exec .venvs/compression/bin/economizer-train classify training/runs/classify.yaml ${1:+--data "$1"}
