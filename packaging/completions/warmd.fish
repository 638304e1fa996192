# fish completion for warmd: install it as
# /usr/share/fish/vendor_completions.d/warmd.fish

function __warmd_complete
    set -l words (commandline -opc)
    set -l cur (commandline -ct)
    set -l reply ($words[1] __complete $words[2..-1] "$cur" 2>/dev/null)
    if test "$reply[1]" = ":dirs"
        __fish_complete_directories "$cur"
        return
    end
    if test "$reply[1]" = ":files"
        __fish_complete_path "$cur"
        return
    end
    printf '%s\n' $reply
end

complete -c warmd -f -a '(__warmd_complete)'
