--- Images as a tree of text.

local errors = require "bough.error"
local progress = require "bough.progress"

local M = {}

local unicode = { branch = "├─ ", last = "└─ ", through = "│  ", blank = "   " }
local plain = { branch = "|- ", last = "`- ", through = "|  ", blank = "   " }

local function describe(row)
  local words = { row.uuid:sub(1, 6) }
  if row.tag then words[#words + 1] = errors.quote(row.tag) end
  local result = row.result
  if result then
    words[#words + 1] = ("exit %d"):format(result.exit_code)
    if result.timed_out then words[#words + 1] = "timed out" end
  elseif row.origin then
    words[#words + 1] = row.origin
  end
  words[#words + 1] = progress.size(row.size or 0)
  local line = table.concat(words, "  ")
  local command = row.command and row.command:gsub("%c", " ")
  if not command then return line end
  if #command > 60 then command = command:sub(1, 57):gsub("[\xC0-\xFF][\x80-\xBF]*$", "") .. "..." end
  return line .. "  " .. command
end

-- Roots, and uuid -> children, both in the order of the rows.
local function family(rows)
  local known, roots, children = {}, {}, {}
  for _, row in ipairs(rows) do known[row.uuid] = true end
  for _, row in ipairs(rows) do
    local siblings = roots
    if row.parent_uuid and known[row.parent_uuid] then
      siblings = children[row.parent_uuid] or {}
      children[row.parent_uuid] = siblings
    end
    siblings[#siblings + 1] = row
  end
  return roots, children
end

--- Draws rows, which are in order of their age, as the forest that their parents make of them.
---@param rows bough.row[]
---@param opts { root: string?, max: number, ascii: boolean?, complete: fun(rows: bough.row[])? } root: uuid of the
---  image to begin with; max: lines; complete: called with the rows that will be drawn
---@return string
function M.tree(rows, opts)
  local signs = opts.ascii and plain or unicode
  local roots, children = family(rows)
  if opts.root then
    roots = {}
    for _, row in ipairs(rows) do
      if row.uuid == opts.root then roots[1] = row end
    end
  end
  local lines, drawn, pending = {}, {}, {} -- pending: a stack of what is still to draw, with the margin of its children
  for i = #roots, 1, -1 do pending[#pending + 1] = { row = roots[i], lead = "", margin = "" } end
  while #pending > 0 and #lines < opts.max do
    local node = table.remove(pending)
    lines[#lines + 1], drawn[#drawn + 1] = node.lead, node.row
    local below = children[node.row.uuid] or {}
    for i = #below, 1, -1 do
      local is_last = i == #below
      pending[#pending + 1] = {
        row = below[i],
        lead = node.margin .. (is_last and signs.last or signs.branch),
        margin = node.margin .. (is_last and signs.blank or signs.through),
      }
    end
  end
  if opts.complete then opts.complete(drawn) end
  for i, row in ipairs(drawn) do lines[i] = lines[i] .. describe(row) end
  if #pending > 0 then
    local left = 0
    while #pending > 0 do
      local node = table.remove(pending)
      left = left + 1
      for _, row in ipairs(children[node.row.uuid] or {}) do pending[#pending + 1] = { row = row } end
    end
    local sign = opts.ascii and "..." or "…"
    lines[#lines + 1] = ("%s %d more: give max = math.huge, or a root"):format(sign, left)
  end
  lines[#lines + 1] = ""
  return table.concat(lines, "\n")
end

return M
