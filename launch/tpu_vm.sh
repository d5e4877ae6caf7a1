#!/usr/bin/env bash
# A run on a Cloud TPU slice: queued resource, code, job, logs, and the way back.
#
#   launch/tpu_vm.sh COMMAND --name=NAME --zone=ZONE [OPTIONS] [-- MAIN_PY_ARGUMENTS]
#
#   create    asks for the slice and waits until it is there
#   setup     copies the committed code to every host and installs it
#   run       starts main.py on every host, in a service that outlives the connection
#   logs      follows the log of one host
#   status    state of the slice, and of the job on each host
#   stop      ends the job; it saves a checkpoint first
#   delete    gives the slice back, with all that is on its disks
#   babysit   create, setup, run; again whenever a spot slice is taken away, until the
#             job is done. The run resumes from its --workdir, so that must be gs://
#
# Options:
#   --type=v5litepod-8   accelerator type          --version=NAME  image of the hosts
#   --project=PROJECT    default: gcloud's own     --spot          cheaper, may be taken
#   --worker=0           whose log                 --poll=60       seconds between looks
#   --dry-run            print every command, run none
#
# For v4, v5e, v5p and v6e. Google mends the Cloud TPU API, but adds nothing to it, and
# TPU7x is not among its types: launch/gke is the way to go on.
set -euo pipefail

readonly SERVICE=litevit LOG=/tmp/litevit.log
# Exit codes of main.py: complete; a mistake of yours; saved after SIGTERM; a process is
# gone or stuck. After the last two the same command goes on.
readonly DONE=0 USAGE=2 PREEMPTED=42 STUCK=43
# How often babysit bears what may pass: looks in a row that failed or did not reach
# host 0; requests in a row that failed, slices in a row that were never reached,
# failures of the job without an hour between; restarts of the job in all.
readonly LOOKS=10 TRIES=3 RESTARTS=100

name='' zone='' type=v5litepod-8 version='' project='' worker=0 poll=60
spot=false dry_run=false arguments=() errors=/dev/null

usage() {
  sed -n '2,23{s/^# \{0,1\}//;p;}' "$0"
}

fail() {
  echo "error: $1 ($0 --help shows the options)" >&2
  exit 2
}

# Prints a command, and runs it unless this is a rehearsal. What it says of errors is
# kept, too.
run() {
  printf '+'
  printf ' %q' "$@"
  printf '\n'
  $dry_run || { "$@" 2>&1 >&3 3>&- | tee "$errors" >&2; } 3>&1
}

# What the last command said of errors, on one line.
why() {
  grep -v '^[[:space:]]*$' "$errors" | tail -n 3 | paste -s -d ' ' - || true
}

parse() {
  while (($#)); do
    case $1 in
      --name=*) name=${1#*=} ;;
      --zone=*) zone=${1#*=} ;;
      --type=*) type=${1#*=} ;;
      --version=*) version=${1#*=} ;;
      --project=*) project=${1#*=} ;;
      --worker=*) worker=${1#*=} ;;
      --poll=*) poll=${1#*=} ;;
      --spot) spot=true ;;
      --dry-run) dry_run=true ;;
      --) shift && arguments=("$@") && break ;;
      *) fail "unknown option $1" ;;
    esac
    shift
  done
  [[ $name ]] || fail '--name= is missing'
  [[ $zone ]] || fail '--zone= is missing, as in --zone=us-west4-a'
  [[ $version ]] || version=$(image) || exit
  place=(--zone="$zone" --quiet)
  [[ -z $project ]] || place+=(--project="$project")
  errors=$(mktemp)
  trap 'rm -f "$errors"' EXIT
}

image() {
  case $type in
    v4-*) echo tpu-ubuntu2204-base ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    tpu7x-* | v7*)
      fail "--type=$type: the Cloud TPU API, which this script uses, does not serve \
TPU7x and later; see launch/gke"
      ;;
    *) fail "--type=$type: no image known for it, give --version=" ;;
  esac
}

# State of the request; MISSING if there is none, UNKNOWN if nobody answers. Warnings
# of gcloud are no part of it.
state() {
  local answer
  if answer=$(gcloud compute tpus queued-resources describe "$name" "${place[@]}" \
    --format='value(state.state)' 2>"$errors"); then
    echo "${answer:-UNKNOWN}"
  elif grep -q NOT_FOUND "$errors"; then
    echo MISSING
  else
    echo UNKNOWN
  fi
}

# on WORKER COMMAND: runs a command on a host, or on all of them.
on() {
  run gcloud compute tpus tpu-vm ssh "$name" "${place[@]}" --worker="$1" --command="$2"
}

request() {
  local more=()
  ! $spot || more+=(--spot)
  run gcloud compute tpus queued-resources create "$name" "${place[@]}" \
    --node-id="$name" --accelerator-type="$type" --runtime-version="$version" \
    "${more[@]+"${more[@]}"}"
}

create() {
  local now unknown=0
  request
  if $dry_run; then
    run gcloud compute tpus queued-resources describe "$name" "${place[@]}" \
      --format='value(state.state)'
    return
  fi
  while now=$(state) && [[ $now != ACTIVE ]]; do
    case $now in
      FAILED | SUSPENDED | SUSPENDING | MISSING)
        echo "error: the request for $name is $now" >&2
        return 1
        ;;
      UNKNOWN)
        unknown=$((unknown + 1))
        echo "$name: no answer: $(why)" >&2
        if ((unknown >= LOOKS)); then
          echo "error: no answer $LOOKS times in a row; the request for $name stands," \
            "and costs money once it is granted:" \
            "$0 delete --name=$name --zone=$zone" >&2
          return 1
        fi
        ;;
      *) unknown=0 ;;
    esac
    echo "$name: $now"
    sleep "$poll"
  done
}

setup() {
  local archive
  archive=${TMPDIR:-/tmp}/$name.tar.gz
  run git -C "$(dirname "$0")/.." archive --format=tar.gz --output="$archive" HEAD ||
    return
  run gcloud compute tpus tpu-vm scp "$archive" "$name:litevit.tar.gz" "${place[@]}" \
    --worker=all || return
  # The images come with Python 3.10, which is too old; uv brings its own.
  on all 'set -e; mkdir -p litevit && tar -xzf litevit.tar.gz -C litevit && cd litevit &&
python3 -m pip install --quiet --user uv &&
~/.local/bin/uv venv --quiet --clear --python 3.12 &&
~/.local/bin/uv pip install --quiet -c constraints/py312.txt -e ".[tpu,gcs]"'
}

# Each host finds the others by the slice's metadata; nothing is said of them here.
# main.py takes no CPUs in the place of TPUs; newer ones lock memory, for which systemd
# has a small limit.
start() {
  ((${#arguments[@]})) || fail 'what to run? give -- --config=... --workdir=gs://...'
  local quoted
  quoted=$(printf ' %q' "${arguments[@]}")
  on all "cd litevit || exit; { sudo systemctl stop $SERVICE; \
sudo systemctl reset-failed $SERVICE; } 2>/dev/null;
sudo systemd-run --unit=$SERVICE --uid=\"\$(id -u)\" --remain-after-exit \
--working-directory=\"\$PWD\" --setenv=HOME=\"\$HOME\" --setenv=JAX_PLATFORMS=tpu,cpu \
--property=TimeoutStopSec=120 --property=LimitMEMLOCK=infinity \
--property=StandardOutput=append:$LOG --property=StandardError=append:$LOG \
\"\$PWD/.venv/bin/python\" main.py$quoted"
}

logs() {
  on "$worker" "tail -n 100 -F $LOG"
}

status() {
  run gcloud compute tpus queued-resources describe "$name" "${place[@]}" \
    --format='value(state.state)'
  on all "systemctl show $SERVICE --property=ActiveState,SubState,ExecMainStatus"
}

stop() {
  on all "sudo systemctl stop $SERVICE"
}

delete() {
  run gcloud compute tpus queued-resources delete "$name" "${place[@]}" --force
}

# The job on host 0: running, absent, unreachable, or its exit code.
outcome() {
  local answer code
  answer=$(gcloud compute tpus tpu-vm ssh "$name" "${place[@]}" --worker=0 \
    --command="systemctl show $SERVICE --property=SubState,ExecMainStatus" \
    2>"$errors") || answer=unreachable
  case $answer in
    *SubState=exited* | *SubState=failed*)
      code=$(sed -n 's/^ExecMainStatus=//p' <<<"$answer")
      echo "${code:-unreachable}"
      ;;
    *SubState=dead*) echo absent ;;
    unreachable) echo unreachable ;;
    *) echo running ;;
  esac
}

# State of the slice itself, which a request may call ACTIVE when it is taken away.
node() {
  gcloud compute tpus tpu-vm describe "$name" "${place[@]}" --format='value(state)' \
    2>/dev/null || echo UNKNOWN
}

# give_up TEXT: ends babysit; the slice is left.
give_up() {
  echo "error: $1; what there is of $name is left for you to look at, and to delete:" \
    "$0 logs --name=$name --zone=$zone" >&2
  exit 1
}

# Looks, does what is missing, looks again: it can be stopped and started at any time.
# One bad answer is borne, several in a row are not.
babysit() {
  case " ${arguments[*]-} " in
    *' --workdir=gs://'*) ;;
    *) fail 'babysit needs -- --workdir=gs://...: local disks go with the slice' ;;
  esac
  if $dry_run; then
    create && setup && start && delete
    return
  fi
  local there job ok pause
  local bad=0 refused=0 silent=0 lost=0 failures=0 restarts=0 steady=0
  while true; do
    there=$(state)
    job=none
    [[ $there != ACTIVE ]] || job=$(outcome)
    echo "$name: slice $there, job $job"
    ok=true pause=$poll
    [[ $job == unreachable ]] || silent=0
    [[ $job == running ]] || steady=0
    [[ $there != ACTIVE ]] || refused=0
    case $there/$job in
      UNKNOWN/*)
        ok=false
        echo "$name: no answer: $(why)" >&2
        ;;
      MISSING/*) request || ok=false ;;
      SUSPENDED/*) delete || ok=false ;;
      FAILED/*) refuse ;;
      ACTIVE/unreachable) miss ;;
      ACTIVE/running)
        lost=0 steady=$((steady + 1))
        ((steady * poll < 3600)) || failures=0
        ;;
      ACTIVE/absent) { setup && start; } || ok=false ;;
      ACTIVE/"$DONE")
        give_back
        return
        ;;
      ACTIVE/"$PREEMPTED" | ACTIVE/"$STUCK")
        restarts=$((restarts + 1))
        ((restarts <= RESTARTS)) || give_up "main.py ended with $job again, after \
$RESTARTS restarts"
        start || ok=false
        ;;
      ACTIVE/[0-9]*)
        failures=$((failures + 1))
        ((job != USAGE && failures <= TRIES)) || give_up "main.py ended with $job"
        start || ok=false
        ;;
    esac
    if $ok; then bad=0; else bad=$((bad + 1)); fi
    ((bad < LOOKS)) || give_up "nothing worked $LOOKS times in a row: $(why)"
    sleep "$pause"
  done
}

# The request failed: asks again, each time after a longer pause.
refuse() {
  refused=$((refused + 1))
  run gcloud compute tpus queued-resources describe "$name" "${place[@]}" \
    --format='yaml(state)' || true
  ((refused <= TRIES)) || give_up "the request failed $refused times in a row"
  delete || ok=false
  pause=$((poll * 2 ** refused))
}

# Host 0 does not answer: waits, and gives back a slice that is not there any more.
miss() {
  silent=$((silent + 1))
  echo "$name: host 0 does not answer: $(why)" >&2
  case $(node) in
    PREEMPTED | TERMINATED) ;;
    *)
      ((silent >= LOOKS)) || return 0
      lost=$((lost + 1))
      ((lost <= TRIES)) || give_up "host 0 of $lost slices did not answer: $(why)"
      ;;
  esac
  delete || ok=false
}

# The run is complete: a slice that is not deleted costs money.
give_back() {
  local try
  for ((try = 0; try < LOOKS; try++)); do
    ! delete || return 0
    sleep "$poll"
  done
  give_up "the run is complete, but the slice could not be deleted and goes on to \
cost money: $(why)"
}

main() {
  local command=${1:-}
  shift || true
  case $command in
    create | setup | logs | status | stop | delete | babysit)
      parse "$@"
      $command
      ;;
    run)
      parse "$@"
      start
      ;;
    '' | -h | --help | help) usage ;;
    *) fail "unknown command $command" ;;
  esac
}

main "$@"
