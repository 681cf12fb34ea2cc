#compdef berth
# zsh, after compinit: source <(berth completion zsh)

_berth() {
	local -a list open
	local word text
	while IFS=$'\t' read -r word text; do
		if [[ $word == *[=:] ]]; then
			open+=("$word")
		else
			list+=("${word//:/\\:}:$text")
		fi
	done < <("${(Q)words[1]}" __complete "${(@Q)words[2,CURRENT-1]}" "${(Q)PREFIX}" 2>/dev/null)
	if (( $#list + $#open == 0 )); then
		_files
		return
	fi
	(( $#open )) && compadd -S '' -- $open
	(( $#list )) && _describe berth list
	return 0
}
if [[ $funcstack[1] == _berth ]]; then
	_berth "$@"
else
	compdef _berth berth
fi
