--- Names of signals as the service takes them, by their numbers on Linux.

local M = { PIPE = 13 }

local names = {
  "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM", "TERM",
  "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO",
  "PWR", "SYS",
}

local REALTIME = 34 -- what the C libraries keep for themselves is below

--- The name of a signal, without SIG.
---@param number integer
---@return string
function M.name(number)
  if names[number] then return names[number] end
  if number == REALTIME then return "RTMIN" end
  if number > REALTIME then return ("RTMIN+%d"):format(number - REALTIME) end
  return tostring(number)
end

return M
