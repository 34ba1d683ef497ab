--- `raises(kind, fn, ...)`: calls fn, insists that it raises an error value of that kind, returns it.

local core = require "bough.core"

return function(kind, fn, ...)
  local outcome = table.pack(pcall(fn, ...))
  if outcome[1] then error(("expected kind %s, but nothing was raised"):format(kind), 2) end
  local problem = outcome[2]
  if not core.is_error(problem) then
    error(("expected kind %s, got a plain error: %s"):format(kind, tostring(problem)), 2)
  end
  if problem.kind ~= kind then
    error(("expected kind %s, got %s: %s"):format(kind, problem.kind, tostring(problem)), 2)
  end
  if tostring(problem):find("\n") then error("the message has several lines", 2) end
  return problem
end
