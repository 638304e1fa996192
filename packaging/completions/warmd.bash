# bash completion for warmd: source it, or install it as
# /usr/share/bash-completion/completions/warmd

_warmd() {
    local line words cur reply prefix r
    COMPREPLY=()
    # The line is split at spaces, not at COMP_WORDBREAKS: bash would cut
    # --start=warm and host:port into three words each.
    line="${COMP_LINE:0:COMP_POINT}"
    read -ra words <<<"$line"
    cur=""
    [[ "$line" == *[[:space:]] ]] || { cur="${words[-1]}"; unset 'words[-1]'; }
    mapfile -t reply < <("${words[0]}" __complete "${words[@]:1}" "$cur" 2>/dev/null)
    if [[ "${reply[0]}" == ":dirs" || "${reply[0]}" == ":files" ]]; then
        compopt -o filenames 2>/dev/null
        [[ "$cur" == --*=* ]] && cur="${cur#*=}"
        r=-f
        [[ "${reply[0]}" == ":dirs" ]] && r=-d
        mapfile -t COMPREPLY < <(compgen "$r" -- "$cur")
        return 0
    fi
    # readline replaces only what stands behind the last word break.
    prefix="${cur%"${cur##*[=:]}"}"
    for r in "${reply[@]}"; do
        r="${r%%$'\t'*}"
        [[ "$r" == "$cur"* ]] && COMPREPLY+=("${r#"$prefix"}")
    done
    [[ ${#COMPREPLY[@]} -eq 1 && "${COMPREPLY[0]}" == *= ]] && compopt -o nospace 2>/dev/null
    return 0
}

complete -F _warmd warmd
