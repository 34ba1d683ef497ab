--- The places where a caller may be: the same body must do the same in each.

local bough = require "bough"

--- @type { name: string, call: fun(body: function, ...): any }[]
local places = {
  { name = "on the main thread", call = function(body, ...) return body(...) end },
  { name = "in a task", call = bough.run },
  {
    name = "in a generator in a task",
    call = function(body, ...)
      local arguments = table.pack(...)
      return bough.run(function()
        return coroutine.wrap(body)(table.unpack(arguments, 1, arguments.n))
      end)
    end,
  },
}

return places
