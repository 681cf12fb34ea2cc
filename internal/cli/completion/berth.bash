# bash: source <(berth completion bash)

_berth() {
	local line=${COMP_LINE:0:COMP_POINT} word words=() skip
	# By blanks alone: bash splits names of images at their colons too.
	read -ra words <<<"$line"
	[[ $line == *[[:blank:]] ]] && words+=("")
	word=${words[${#words[@]}-1]}
	skip=${word%"${word##*[=:]}"}
	COMPREPLY=()
	while IFS=$'\t' read -r word _; do
		COMPREPLY+=("${word#"$skip"}")
	done < <("$1" __complete "${words[@]:1}" 2>/dev/null)
	[[ ${#COMPREPLY[@]} == 1 && ${COMPREPLY[0]} == *[=:] ]] && compopt -o nospace
	return 0
}
complete -o default -F _berth berth
