"""`trainctl completion bash|zsh`: candidates for the shell's Tab completion."""

from __future__ import annotations

from launcher.cli._arguments import Arguments

# Candidates are full words, with a space where nothing can follow. Bash replaces only the text
# after the last of COMP_WORDBREAKS (`=` and `:` are among them), so that the part before is
# removed.
_BASH = r"""
_trainctl() {
    local line=${COMP_LINE:0:COMP_POINT} candidate
    local word=${line##*[[:space:]]}
    local kept=${word%"${word##*["$COMP_WORDBREAKS"]}"}
    COMPREPLY=()
    while IFS= read -r candidate; do
        COMPREPLY+=("${candidate#"$kept"}")
    done < <("$1" completion query "$line" 2>/dev/null)
}
complete -o default -o nospace -F _trainctl trainctl
"""
_ZSH = r"""
_trainctl() {
    local -a candidates
    local line="${(j: :)words[1,CURRENT-1]} $PREFIX"
    candidates=("${(@f)$($words[1] completion query "$line" 2>/dev/null)}")
    candidates=(${candidates:#})
    if (( $#candidates )); then
        compadd -Q -S '' -- $candidates
    else
        compset -P '*='
        _files
    fi
}
compdef _trainctl trainctl
"""


def main(argv: list[str]) -> int:
    """Print the shell's hook, which calls `query LINE`."""
    arguments = Arguments(
        "completion",
        "bash|zsh",
        "Print the tab completion of a shell: verbs, groups, presets, keys and recipes.",
        'eval "$(trainctl completion bash)"    # in ~/.bashrc',
        'eval "$(trainctl completion zsh)"     # in ~/.zshrc, after compinit',
    )
    if argv[:1] == ["query"]:
        from launcher.cli._candidates import candidates

        # No empty line without candidates: then the shell completes paths.
        for candidate in candidates(argv[1] if len(argv) > 1 else ""):
            print(candidate)
        return 0
    _, words = arguments.words(argv, at_least=1, at_most=1)
    hooks = {"bash": _BASH, "zsh": _ZSH}
    if words[0] not in hooks:
        arguments.error(f"no completion for {words[0]!r}; it can be: bash, zsh")
    print(hooks[words[0]].strip())
    return 0
