--- The images of the store and their tags.

local json = require "bough.json"
local http = require "bough.serve.http"
local validate = require "bough.serve.validate"
local wire = require "bough.contree.wire"

local M = {}

local MICROSECOND = 1e-6 -- what the store counts in

--- An image as answers have it.
---@param image bough.image
---@param operation string? uuid of the operation that made it
---@return table
function M.describe(image, operation)
  return {
    uuid = image.uuid, tag = image.tag or json.null, created_at = wire.rfc3339(image.created_at),
    operation_uuid = operation or json.null,
  }
end

--- The same, with the operation looked up. Waits.
---@param app table
---@param image bough.image
---@return table
function M.describe_one(app, image)
  return M.describe(image, app.journal:makers({ image.uuid })[image.uuid])
end

--- The image of a uuid in a path. Waits. Raises 404.
---@param app table
---@param uuid string
---@return bough.image
function M.find(app, uuid)
  local lower = validate.uuid(uuid)
  local image = lower and app.box.images:list({ uuid = lower, number = 1 })[1]
  if not image then error(http.problem(404, ("image %s not found"):format(uuid), { kind = "not_found" }), 0) end
  return image
end

local function tag_prefix(text)
  if text == "" then return text end
  -- "team/" begins tags, though it is none
  local body = text:gsub("[:/.]+$", "")
  local taken, why = validate.tag(body)
  if not taken then return nil, why end
  return text
end

local function uuid_prefix(text)
  if #text > 36 or text:find "[^%x-]" then return nil, "must be the beginning of a UUID" end
  return text:lower()
end

local list_params = validate.listing {
  tagged = { "flag", default = false },
  tag = { "string", max = 256, test = tag_prefix },
  uuid = { "string", max = 64, test = uuid_prefix },
}

--- GET /images
function M.list(app, request)
  local params = validate.params(request.params, list_params)
  local tag = params.tag ~= "" and params.tag or nil
  local images = app.box.images:list {
    tag = tag and tag .. "*", first = tag, tagged = params.tagged or nil, uuid = params.uuid,
    since = params.since, before = params["until"] and params["until"] + MICROSECOND,
    number = params.limit, offset = params.offset,
  }
  local uuids, rows = {}, json.array {}
  for i, image in ipairs(images) do uuids[i] = image.uuid end
  local makers = uuids[1] and app.journal:makers(uuids) or {}
  for i, image in ipairs(images) do rows[i] = M.describe(image, makers[image.uuid]) end
  request:reply(200, { images = rows })
end

local tag_body = { tag = { "string", required = true, test = validate.tag } }

--- PATCH /images/{uuid}/tag: the tag leaves the image that had it, and the image the one that it had.
function M.tag(app, request, uuid)
  local body = validate.json(request, tag_body)
  local image
  do
    local _ <close> = app.tagging:acquire()
    image = M.find(app, uuid)
    local had = image.tag
    image = image:tag_as(body.tag)
    -- the old one goes when the store has taken the new one; it removes only all of them
    if had and had ~= body.tag then
      image:untag()
      image = image:tag_as(body.tag)
    end
  end
  request:reply(200, M.describe_one(app, image))
end

local untag_params = { tag = { "string", max = 256 } }

--- DELETE /images/{uuid}/tag
function M.untag(app, request, uuid)
  local params = validate.params(request.params, untag_params)
  do
    local _ <close> = app.tagging:acquire()
    local image = M.find(app, uuid)
    local named = params.tag ~= "" and params.tag or nil
    if named and image.tag and image.tag ~= named then
      error(http.problem(409, ("image %s has the tag %s, not %s"):format(image.uuid, image.tag, named),
        { kind = "state" }), 0)
    end
    if image.tag then image:untag() end
  end
  request:reply(204)
end

return M
