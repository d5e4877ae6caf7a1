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
set -euo pipefail

readonly SERVICE=litevit LOG=/tmp/litevit.log
# Exit codes of main.py: complete; a mistake of yours; saved after SIGTERM.
readonly DONE=0 USAGE=2 PREEMPTED=42

name='' zone='' type=v5litepod-8 version='' project='' worker=0 poll=60
spot=false dry_run=false arguments=()

usage() {
  sed -n '2,20{s/^# \{0,1\}//;p;}' "$0"
}

fail() {
  echo "error: $1 ($0 --help shows the options)" >&2
  exit 2
}

# Prints a command, and runs it unless this is a rehearsal.
run() {
  printf '+'
  printf ' %q' "$@"
  printf '\n'
  $dry_run || "$@"
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
}

image() {
  case $type in
    v4-*) echo tpu-ubuntu2204-base ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    *) fail "--type=$type: no image known for it, give --version=" ;;
  esac
}

# State of the request; MISSING if there is none, UNKNOWN if nobody answers.
state() {
  local said
  said=$(gcloud compute tpus queued-resources describe "$name" "${place[@]}" \
    --format='value(state.state)' 2>&1) && echo "$said" && return
  [[ $said == *NOT_FOUND* ]] && echo MISSING || echo UNKNOWN
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
  local now
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
~/.local/bin/uv pip install --quiet -c constraints/py312.txt -e ".[tpu]" gcsfs'
}

# Each host finds the others by the slice's metadata; nothing is said of them here.
start() {
  ((${#arguments[@]})) || fail 'what to run? give -- --config=... --workdir=gs://...'
  local quoted
  quoted=$(printf ' %q' "${arguments[@]}")
  on all "cd litevit && { sudo systemctl stop $SERVICE; \
sudo systemctl reset-failed $SERVICE; } 2>/dev/null;
sudo systemd-run --unit=$SERVICE --uid=\"\$(id -u)\" --remain-after-exit \
--working-directory=\"\$PWD\" --setenv=HOME=\"\$HOME\" --property=TimeoutStopSec=120 \
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
  local said
  said=$(gcloud compute tpus tpu-vm ssh "$name" "${place[@]}" --worker=0 \
    --command="systemctl show $SERVICE --property=SubState,ExecMainStatus" \
    2>/dev/null) || said=unreachable
  case $said in
    *SubState=exited* | *SubState=failed*) sed -n 's/^ExecMainStatus=//p' <<<"$said" ;;
    *SubState=dead*) echo absent ;;
    unreachable) echo unreachable ;;
    *) echo running ;;
  esac
}

# Looks, does what is missing, looks again: it can be stopped and started at any time.
babysit() {
  case " ${arguments[*]-} " in
    *' --workdir=gs://'*) ;;
    *) fail 'babysit needs -- --workdir=gs://...: local disks go with the slice' ;;
  esac
  if $dry_run; then
    create && setup && start && delete
    return
  fi
  local failures=0 there job
  while true; do
    there=$(state)
    job=none
    [[ $there != ACTIVE ]] || job=$(outcome)
    echo "$name: slice $there, job $job"
    case $there/$job in
      MISSING/*) request ;;
      FAILED/* | SUSPENDED/*) delete ;;
      ACTIVE/absent) { setup && start; } || true ;;
      ACTIVE/"$PREEMPTED") start || true ;;
      ACTIVE/"$DONE")
        delete
        return
        ;;
      ACTIVE/[0-9]*)
        failures=$((failures + 1))
        if ((job == USAGE || failures > 3)); then
          echo "error: main.py ended with $job; the slice is left for you to look," \
            "and to delete: $0 logs --name=$name --zone=$zone" >&2
          return 1
        fi
        start || true
        ;;
    esac
    sleep "$poll"
  done
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
