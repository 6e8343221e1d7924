#!/bin/sh
# Makes the runs and students of results/reference on CIFAR-10 (JPEG): sh benchmarks/reference.sh [SEED ...]
# It wants the images as ./cifar10-jpeg, and goes on where it was cut off. Seeds are those of fine-tuning (0 1 2).
# DEVICE=cuda trains the students with --cutmix on a GPU, as those that are there were (H200); they take hours on a core.
set -eu
python=${PYTHON:-.venv/bin/python}
reference=results/reference

search() { # NAME MODEL OPTION ...
    [ -e $reference/$1/best.json ] && return 0
    if [ -e $reference/$1/run.json ]; then
        $python -m search.run --resume "$1" --results $reference
        return 0
    fi
    name=$1 model=$2
    shift 2
    $python -m search.run --model $model --dataset imagefolder --data-dir cifar10-jpeg \
        --teacher results/teachers/$model-imagefolder-cifar10-jpeg.int8.json --results $reference --run-name $name "$@"
}

student() { # RUN NAME OPTION ...
    [ -e $reference/$1/$2/finetune.json ] && return 0
    run=$1 name=$2
    shift 2
    $python -m search.finetune --run $run --results $reference --output $reference/$run/$name "$@"
}

returns='--episodes 512 --search-images 1024 --seeds 0,1,2,3,4'
losses='--algorithm cma --objective kd+at --search-images 4096 --episodes 128 --seeds 0,1,2,3,4'
climb='--algorithm hill --objective kd --rungs 1024,4096 --seeds 0,1,2,3,4'
search alexnet-quintile alexnet --algorithm quintile
search alexnet-cma alexnet $returns
search alexnet-ppo alexnet --algorithm ppo $returns
search alexnet-random alexnet --algorithm random $returns
search alexnet-cma-losses alexnet $losses
search alexnet-hill alexnet $climb --episodes 256
search squeezenet-quintile squeezenet --algorithm quintile
search squeezenet-cma squeezenet $returns
search squeezenet-ppo squeezenet --algorithm ppo $returns
search squeezenet-random squeezenet --algorithm random $returns
search squeezenet-cma-losses squeezenet $losses
search squeezenet-hill squeezenet $climb --episodes 256
search squeezenet-all-quintile squeezenet --sites all --algorithm quintile
search squeezenet-all-hill squeezenet --sites all $climb --episodes 128

for run in alexnet squeezenet squeezenet-all; do
    student $run-hill corrected --epochs 0
done
for seed in ${*:-0 1 2}; do
    tuned="--learn-codes --rate 0.1 --seed $seed"
    long="--learn-codes --batch-size 128 --cutmix 0.5 --device ${DEVICE:-cpu} --seed $seed"
    student alexnet-hill fine-tuned-$seed --epochs 28 --rate 0.2 --labels $long
    student squeezenet-hill fine-tuned-$seed --epochs 0.5 $tuned
    student squeezenet-all-hill fine-tuned-$seed --epochs 2.5 $tuned
    student squeezenet-all-hill held-$seed --epochs 5 --rate 0.1 --hold-exact $long
    student alexnet-hill no-tail-$seed --epochs 13 --rate 0.2 --no-tail $long
    student squeezenet-all-hill no-tail-$seed --epochs 3 --rate 0.2 --no-tail --learn-codes --seed $seed
done
for problem in alexnet squeezenet squeezenet-all; do
    runs="${runs:-} $reference/$problem-quintile $reference/$problem-hill"
done
$python -m search.report --beside $runs
