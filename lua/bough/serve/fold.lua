--- The result of a process, put together from its events in the journal.

local json = require "bough.json"
local record = require "bough.serve.record"
local wire = require "bough.contree.wire"

local M = {}

local PAGE = 1 << 20

local takers = {}

function takers.spawn(state, data) state.pid = math.tointeger(data.pid) end

function takers.stdout(state, data) table.insert(state.stdout, wire.bytes(data)) end

function takers.stderr(state, data) table.insert(state.stderr, wire.bytes(data)) end

function takers.truncated(state, data) state.truncated[data.stream] = true end

function takers.exit(state, data) state.ending = record.ending_of_exit(data) end

--- Folds the events of a process. Waits.
---@param journal userdata
---@param uuid string of the operation
---@param spid integer
---@param elapsed number? seconds, of one that runs
---@return table? result an InstanceResult; nil where there was no such process
function M.result(journal, uuid, spid, elapsed)
  local state = { stdout = {}, stderr = {}, truncated = {} }
  local text, last = journal:events(uuid, -1, spid, PAGE)
  while text do
    for line in text:gmatch "\ndata: ([^\n]*)" do
      local event = json.read(line)
      local take = event and takers[event.type]
      if take then take(state, event.data) end
    end
    text, last = journal:events(uuid, last, spid, PAGE)
  end
  if not state.pid then return nil end
  -- what has no end in the log went down with the server
  local ending = state.ending or not elapsed and record.ending(nil) or nil
  return record.result(state.pid, ending, {
    stdout = table.concat(state.stdout), stderr = table.concat(state.stderr), truncated = state.truncated,
  }, elapsed or nil)
end

return M
