--- Walking along the listings of a ConTree service: a page when it is needed, what the service cannot filter is
--- filtered here.
--
-- Listings are newest first, and there is no count: the oldest are found by asking further and further back, then
-- between what was there and what was not.

local errors = require "bough.error"
local glob = require "bough.glob"
local wire = require "bough.contree.wire"
local work = require "bough.contree.work"

local M = {}

local raise = errors.raise

local PAGE = 1000 -- the most that the service gives at once
local LEAST = 100 -- where rows are filtered here
local FEW = 64 -- children that are asked for one by one
local WIDTH = 8 -- requests at a time
local MOST_PAGES = 1 << 20
local KEPT = 8 -- places in listings that are remembered
local MARGIN = 2e-6 -- seconds: nobody says whether a bound is in the range
local SKEW = 60 -- seconds that clocks of the service may differ by

-- Pages --------------------------------------------------------------------------------------------

local function page_of(api, path, params, offset, limit)
  local query = { { "limit", limit }, { "offset", offset > 0 and offset or nil } }
  for name, value in pairs(params) do query[#query + 1] = { name, value } end
  table.sort(query, function(a, b) return a[1] < b[1] end)
  local json = api:call({ op = "list", path = path, query = query, expect = "any" }).json
  local rows = type(json) == "table" and (json[path:sub(2)] or json)
  if type(rows) ~= "table" or #rows > limit or (#rows == 0 and next(rows) ~= nil) then
    raise("protocol", "list", "the service answered with something that is no page of %s", path)
  end
  for _, row in ipairs(rows) do
    if type(row) ~= "table" then raise("protocol", "list", "the service listed what is no record of %s", path) end
  end
  return rows
end

---@class bough.contree.walker
---@field given integer how many rows it has handed out
---@field next fun(self, want: number): table? the next row, nil behind the last; want: how many will be asked for.
---  Waits

-- Newest first. What comes meanwhile moves the pages on: what the last page had is not taken twice.
local forward = {}
forward.__index = forward

function forward:fetch(want)
  local size = self.is_exact and want or math.max(want * 4, LEAST)
  size = math.min(size, PAGE) // 1 | 0
  local rows = page_of(self.api, self.path, self.params, self.offset, size)
  self.offset, self.finished = self.offset + #rows, #rows < size
  local seen = {}
  self.page, self.at = {}, 0
  for _, row in ipairs(rows) do
    local uuid = row.uuid
    if uuid ~= nil then seen[uuid] = true end
    if (uuid == nil or not self.seen[uuid]) and self.wanted(row) then self.page[#self.page + 1] = row end
  end
  self.seen = seen
end

function forward:next(want)
  while true do
    self.at = self.at + 1
    local row = self.page[self.at]
    if row then
      self.page[self.at] = false
      self.given = self.given + 1
      return row
    elseif self.finished then
      return nil
    end
    self:fetch(want)
  end
end

local function new_forward(api, path, question)
  return setmetatable({
    api = api, path = path, params = question.params, wanted = question.wanted, is_exact = question.is_exact,
    offset = 0, page = {}, at = 0, seen = {}, given = 0,
  }, forward)
end

-- Oldest first.
local backward = {}
backward.__index = backward

function backward:fetch(index) return page_of(self.api, self.path, self.params, index * PAGE, PAGE) end

function backward:has(index) return page_of(self.api, self.path, self.params, index * PAGE, 1)[1] ~= nil end

-- Begins with the last page. What comes after that does not turn up, and moves nothing.
function backward:begin()
  local first = self:fetch(0)
  if #first < PAGE then
    self.index = 0
    return first
  end
  local newest = wire.moment(first[1].created_at)
  if newest and not self.params["until"] then
    self.params["until"] = wire.rfc3339(newest + MARGIN)
  end
  local low, high = 0, 1
  while self:has(high) do
    low, high = high, high * 2
    if high > MOST_PAGES then raise("protocol", "list", "the service's list of %s does not end", self.path) end
  end
  while high - low > 1 do
    local middle = (low + high) // 2
    if self:has(middle) then low = middle else high = middle end
  end
  self.index = low
  return low > 0 and self:fetch(low) or first
end

function backward:next()
  while self.at == 0 do
    if self.index == 0 then return nil end
    local rows
    if self.index then
      self.index = self.index - 1
      rows = self:fetch(self.index)
    else
      rows = self:begin()
    end
    self.page = {}
    for _, row in ipairs(rows) do
      if self.wanted(row) then self.page[#self.page + 1] = row end
    end
    self.at = #self.page
  end
  local row = self.page[self.at]
  self.page[self.at] = nil
  self.at, self.given = self.at - 1, self.given + 1
  return row
end

local function new_backward(api, path, question)
  return setmetatable({
    api = api, path = path, params = question.params, wanted = question.wanted, page = {}, at = 0, given = 0,
  }, backward)
end

-- What is all here.
local here = {}
here.__index = here

function here:next()
  local row = self.rows[self.given + 1]
  if row then self.given = self.given + 1 end
  return row
end

local function new_here(rows) return setmetatable({ rows = rows, given = 0 }, here) end

-- Filters ------------------------------------------------------------------------------------------

local LAST = 253402300799 -- the end of the year 9999, which timestamps end with

local function timestamp(seconds) return wire.rfc3339(math.max(math.min(seconds, LAST), 0)) end

-- What the service is asked, and what is looked at here. nil where nothing can fit.
local function question_of(filter)
  local since, before = filter.since, filter.before
  local params = { tagged = filter.tagged or filter.tag_glob ~= nil }
  if since and since > 0 then
    if since > LAST then return nil end
    params.since = timestamp(since - MARGIN)
  end
  if before then
    if before <= 0 then return nil end
    if before < LAST then params["until"] = timestamp(before + MARGIN) end
  end
  local matches
  if filter.tag_glob then
    -- as sqlite's GLOB, which has no braces
    matches = glob.name((filter.tag_glob:gsub("[{}\\]", "\\%0")))
    local prefix = filter.tag_glob:match "^[^*?%[]*"
    if prefix:find "[^a-z0-9_:/.-]" then return nil end -- no tag has such a byte
    prefix = prefix:gsub("[:/.]+$", "") -- the service wants what could be a tag
    if prefix ~= "" and not prefix:find "^[:/.]" then params.tag = prefix end
  end
  local prefix = filter.uuid_prefix
  if prefix then params.uuid = prefix end
  return {
    params = params, is_exact = matches == nil,
    wanted = function(row)
      if prefix and not (type(row.uuid) == "string" and row.uuid:lower():sub(1, #prefix) == prefix) then
        return false
      end
      local tag = type(row.tag) == "string" and row.tag or nil
      if (filter.tagged or matches) and not tag then return false end
      if matches and not matches(tag) then return false end
      local at = (since or before) and (wire.moment(row.created_at) or 0.0)
      return (not since or at >= since) and (not before or at < before)
    end,
  }
end

-- Children -----------------------------------------------------------------------------------------

-- Iterates over runs that have left an image: its uuid, and that of the one they ran in.
local function each_run(api, since)
  local walker = new_forward(api, "/operations", {
    params = { kind = "instance", since = since }, is_exact = true,
    wanted = function(row)
      return wire.is_uuid(row.result_image_uuid) and wire.is_uuid(row.image_uuid)
        and row.image_uuid:lower() ~= row.result_image_uuid:lower()
    end,
  })
  return function()
    local row = walker:next(math.huge)
    if not row then return nil end
    return row.result_image_uuid:lower(), row.image_uuid:lower()
  end
end

-- The uuids of the images that runs in this one have left, and a bound of when. The service keeps no parents: its
-- operations tell.
local function children_of(api, parent)
  local good, answer = pcall(api.call, api, { op = "list", path = ("/inspect/%s/"):format(wire.escape(parent)) })
  if not good then
    if errors.is(answer) and answer.status == 404 then return {}, 0 end
    error(answer, 0)
  end
  local begun = wire.moment(answer.json.created_at)
  local since = begun and timestamp(begun - SKEW) -- what runs in an image begins after it
  local set, count = {}, 0
  for uuid, from in each_run(api, since) do
    if from == parent and not set[uuid] then
      set[uuid], count = true, count + 1
    end
  end
  return set, count, since
end

--- What images were made from, as far as operations tell. Waits.
---@param api bough.contree.api
---@return table<string, string> parents by the uuid of the child
function M.parents(api)
  local parents = {}
  for uuid, from in each_run(api) do parents[uuid] = from end
  return parents
end

local function by_age(rows, oldest_first)
  local at = {}
  for _, row in ipairs(rows) do at[row] = wire.moment(row.created_at) or 0.0 end
  table.sort(rows, function(a, b)
    if at[a] ~= at[b] then return (at[a] < at[b]) == (oldest_first == true) end
    return a.uuid < b.uuid
  end)
  return rows
end

local function fetch_all(api, uuids)
  local found = {}
  work.each(#uuids, WIDTH, function(i)
    local good, answer = pcall(api.call, api, { op = "list", path = ("/inspect/%s/"):format(uuids[i]) })
    if good then
      found[i] = answer.json
    elseif not (errors.is(answer) and answer.status == 404) then
      error(answer, 0)
    end
  end)
  local rows = {}
  for i = 1, #uuids do
    if found[i] and type(found[i].uuid) == "string" then rows[#rows + 1] = found[i] end
  end
  return rows
end

-- A walker over the children of an image, as far as they are wanted.
local function over_children(api, filter, question)
  local set, count, since = children_of(api, filter.parent:lower())
  local wanted = question.wanted
  if count <= FEW then
    local uuids, rows = {}, {}
    for uuid in pairs(set) do uuids[#uuids + 1] = uuid end
    for _, row in ipairs(fetch_all(api, uuids)) do
      if wanted(row) then rows[#rows + 1] = row end
    end
    return new_here(by_age(rows, filter.oldest_first))
  end
  question.is_exact = false
  local params = question.params
  if not params.since or (since and since > params.since) then params.since = since end
  function question.wanted(row)
    return type(row.uuid) == "string" and set[row.uuid:lower()] == true and wanted(row)
  end
  return nil
end

-- Lists --------------------------------------------------------------------------------------------

local names = { "tag_glob", "tagged", "parent", "since", "before", "oldest_first", "uuid_prefix" }

local function key_of(filter)
  local parts = {}
  for i, name in ipairs(names) do
    local value = filter[name]
    parts[i] = math.type(value) == "float" and ("%a"):format(value) or tostring(value)
  end
  return table.concat(parts, "\0")
end

-- The walker that an earlier call has left where this one begins.
local function resume(kept, key, offset)
  for i, place in ipairs(kept) do
    if place.key == key and place.walker.given == offset then
      table.remove(kept, i)
      return place.walker
    end
  end
  return nil
end

local function keep(kept, key, walker)
  table.insert(kept, 1, { key = key, walker = walker })
  kept[KEPT + 1] = nil
end

local function walker_for(api, filter)
  local question = question_of(filter)
  if not question then return new_here {} end
  local walker = filter.parent and over_children(api, filter, question)
  if walker then return walker end
  return (filter.oldest_first and new_backward or new_forward)(api, "/images", question)
end

-- What an exact tag names, where the rest of the filter wants it.
local function of_tag(filter, record, parent_of)
  local question = question_of(filter)
  if not record or not question or not question.wanted(record) then return {} end
  if filter.parent and parent_of(record) ~= filter.parent:lower() then return {} end
  return { record }
end

-- So many records of a walk, from the one at `offset` on.
local function part(driver, filter, offset, limit)
  if limit < 1 then return {} end
  local kept = driver.places or {}
  driver.places = kept
  local key = key_of(filter)
  local walker = offset > 0 and resume(kept, key, offset) or walker_for(driver.api, filter)
  while walker.given < offset do
    if not walker:next(offset - walker.given + limit) then return {} end
  end
  local rows = {}
  while #rows < limit do
    local row = walker:next(limit - #rows)
    if not row then break end
    row.parent_uuid = filter.parent and filter.parent:lower() or nil
    rows[#rows + 1] = row
  end
  if #rows == limit then keep(kept, key, walker) end
  return rows
end

-- The same with one record in front of all, which does not come again.
local function part_behind(driver, filter, first, offset, limit)
  if #first == 0 then return part(driver, filter, offset, limit) end
  local rows = part(driver, filter, 0, offset + limit)
  for i, row in ipairs(rows) do
    if row.uuid == first[1].uuid then
      table.remove(rows, i)
      break
    end
  end
  table.insert(rows, 1, first[1])
  return table.move(rows, offset + 1, math.tointeger(math.min(#rows, offset + limit)), 1, {})
end

--- The records of images that fit a filter. Waits.
---@param driver table `api`; places in listings are kept in it
---@param filter table as `list` of drivers takes it
---@param at_tag fun(tag: string): table? the record behind a tag
---@param parent_of fun(record: table): string? the uuid of what an image was made from
---@return table[] records each with `parent_uuid` where that is known
function M.images(driver, filter, at_tag, parent_of)
  local offset, limit = filter.offset or 0, filter.limit or math.huge
  if filter.tag then
    local rows = of_tag(filter, at_tag(filter.tag), parent_of)
    return offset == 0 and limit > 0 and rows or {}
  elseif filter.tag_first then
    return part_behind(driver, filter, of_tag(filter, at_tag(filter.tag_first), parent_of), offset, limit)
  end
  return part(driver, filter, offset, limit)
end

return M
