# shellcheck shell=bash disable=SC2034 # what choose_python sets is for install.sh
# Chooses the Python that makes a virtual environment; sourced by scripts/install.sh.
#
# A name in PATH says nothing: a shim of pyenv may stand for a version that is not selected, and
# Debian ships what makes environments apart. So a candidate is taken only after it ran.

# What a candidate must do: say its version, and make an environment, in which ensurepip brings
# pip. The product needs ctypes, lzma and ssl, which a Python built without their headers lacks.
python_probe='
import sys
if sys.version_info < (3, 11):
    sys.exit("older than Python 3.11: %d.%d.%d" % sys.version_info[:3])
import ctypes, ensurepip, lzma, ssl, tempfile, venv
with tempfile.TemporaryDirectory() as folder:
    venv.create(folder, symlinks=True)
print("%d.%d.%d" % sys.version_info[:3])
'

# probe_python PROGRAM : its version, such as 3.12.1; or why it is no candidate, and status 1.
# One line in both cases.
probe_python() {
    local output status=0 line
    if [ ! -x "$1" ]; then
        printf 'no such program\n'
        return 1
    fi
    output=$("$1" -c "$python_probe" 2>&1 </dev/null) || status=$?
    line=${output##*$'\n'}
    if [ "$status" = 0 ] && [[ $line =~ ^3\.[0-9]+\.[0-9]+$ ]]; then
        printf '%s\n' "$line"
        return
    fi
    # An exception is named in the last line; pyenv and the shell say it in the first.
    [[ $output == Traceback* ]] || line=${output%%$'\n'*}
    printf '%s\n' "${line:-ended with status $status and said nothing}"
    return 1
}

# The candidates, best first: the newest by name and in the order of PATH, then those without a
# version in their name, then what uv keeps outside of PATH.
list_pythons() {
    local minor
    for minor in 20 19 18 17 16 15 14 13 12 11; do
        type -aP "python3.$minor" || true
    done
    type -aP python3 python || true
    uv python find --system --no-project --no-python-downloads '>=3.11' 2>/dev/null || true
}

# choose_python : sets chosen_python and chosen_version. Status 1 where no candidate is fit; then
# refused_pythons says why, a line for each, and unpackaged_python is the first of Debian's own
# that lacks a module which is in another package, or empty. PYTHON=... leaves one candidate.
choose_python() {
    local candidate answer real candidates seen=' '
    chosen_python='' chosen_version='' refused_pythons='' unpackaged_python=''
    if [ -n "${PYTHON:-}" ]; then
        candidates=$(type -P "$PYTHON" || printf '%s' "$PYTHON")
    else
        candidates=$(list_pythons)
    fi
    while IFS= read -r candidate; do
        [ -n "$candidate" ] || continue
        real=$(readlink -f "$candidate" || printf '%s' "$candidate")
        # /bin is /usr/bin, and python3 one of those with a version.
        [[ $seen != *" $real "* ]] || continue
        seen+="$real "
        if answer=$(probe_python "$candidate"); then
            chosen_python=$candidate chosen_version=$answer
            return
        fi
        refused_pythons+="$candidate: $answer"$'\n'
        if [[ $real == /usr/bin/python3.* && $answer == *"No module named"* ]]; then
            unpackaged_python=${unpackaged_python:-$real}
        fi
    done <<<"$candidates"
    return 1
}
