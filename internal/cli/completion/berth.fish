# fish: berth completion fish | source

function __berth_complete
	set -l words (commandline -opc)
	set -l program $words[1]
	set -e words[1]
	set -l word (commandline -ct)
	set -l found ($program __complete $words "$word" 2>/dev/null)
	if test (count $found) -gt 0
		printf '%s\n' $found
	else
		__fish_complete_path "$word"
	end
end
complete -c berth -f -a '(__berth_complete)'
