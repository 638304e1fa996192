#compdef warmctl
# zsh completion for warmctl: install it as _warmctl in a folder of $fpath

_warmctl() {
  local -a reply values
  local line value
  reply=("${(@f)$(${words[1]} __complete "${(@)words[2,CURRENT-1]}" "${words[CURRENT]}" 2>/dev/null)}")
  if [[ "${reply[1]}" == ":dirs" ]]; then
    _files -/
    return
  fi
  for line in $reply; do
    value="${${line%%$'\t'*}//:/\\:}"
    values+=("${value}:${line#*$'\t'}")
  done
  (( $#values )) && _describe -t warmctl 'warmctl' values
}

if [[ "$funcstack[1]" == "_warmctl" ]]; then
  _warmctl "$@"
else
  compdef _warmctl warmctl
fi
