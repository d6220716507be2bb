#!/bin/sh
# Makes a virtual environment with a Python that Midstep runs on: make-venv.sh FOLDER [PYTHON]
# Without PYTHON it takes the first of several names that is there, fits, and can make environments: 3.11 first,
# with which all tests run most often.
# docs/decisions.md says why 3.10 does not do.
set -eu
folder=$1
[ -n "${2:-}" ] && set -- "$2" || set -- python3.11 python3.12 python3.13 python3 python
unfit=

for python in "$@"; do
    found=$("$python" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null) || continue
    case $found in
        3.11.* | 3.12.* | 3.13.*) ;;
        *)
            unfit="$unfit $python is $found."
            continue
            ;;
    esac
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        unfit="$unfit $python is $found and cannot make virtual environments:"
        unfit="$unfit on Debian and Ubuntu, apt install python${found%.*}-venv."
        continue
    fi
    echo "Installing into $folder with Python $found ($(command -v "$python"))." >&2
    exec "$python" -m venv --clear "$folder"
done
echo "Midstep needs Python 3.11, 3.12 or 3.13, and none was found under the names $*.$unfit" \
    "Name one with make PYTHON=/path/to/python." >&2
exit 1
